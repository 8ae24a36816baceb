//! `podium compare` on small judged sets, with a random primary and the bundled fallback.

mod common;

use common::{Serving, podium, small_model};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;

/// Four queries with 30 candidates each, with ties in the run and in the scores, grades from -1 to 2, and missing
/// judgements.
fn set(folder: &Path) {
    fs::create_dir(folder).unwrap();
    let words = ["ab", "cat", "dog", "fox", "gnu", "hen", "ibex", "jay"];
    let text = |seed: usize, count: usize| {
        (0..count).map(|n| words[(seed * 7 + n * n) % 8]).collect::<Vec<_>>().join(" ")
    };
    let entries = |count: usize, length: usize| {
        let entry =
            |id: usize| format!("{}\n", json!({"_id": format!("x{id}"), "text": text(id % 20, length)}));
        (0..count).map(entry).collect::<String>()
    };
    fs::write(folder.join("queries.jsonl"), entries(4, 3)).unwrap();
    fs::write(folder.join("corpus.jsonl"), entries(30, 9)).unwrap();
    let pairs = || (0..4usize).flat_map(|query| (0..30usize).map(move |document| (query, document)));
    let judged = pairs().filter(|(q, d)| (q + d) % 3 == 0);
    let grades = judged.map(|(q, d)| format!("x{q}\tx{d}\t{}\n", (q * d) as i32 % 4 - 1)).collect::<String>();
    fs::write(folder.join("qrels.tsv"), grades).unwrap();
    let run = pairs().map(|(q, d)| format!("x{q} Q0 x{d} {d} {} x\n", (100 - d) / 4)).collect::<String>();
    fs::write(folder.join("bm25.run"), run).unwrap();
}

fn arguments(place: &Path, primary: &Path) -> Vec<String> {
    let (place, primary) = (place.display(), primary.display());
    let arguments = format!(
        "compare {place}/one {place}/two --primary {primary} --tune {place}/three --top-k 3,10 --budgets-ms 1,1000 \
         --work {place}/work --html {place}/report.html --svg {place}/frontier.svg --json {place}/report.json --runs {place}/runs"
    );
    arguments.split(' ').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn compare(arguments: &[String]) -> (i32, String, String) {
    let output = podium(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn report(place: &Path) -> Value {
    serde_json::from_slice(&fs::read(place.join("report.json")).unwrap()).unwrap()
}

#[test]
fn ways_stand_side_by_side_and_no_pair_is_scored_twice() {
    let place = tempfile::tempdir().unwrap();
    let (place, primary) = (place.path(), small_model());
    ["one", "two", "three"].iter().for_each(|name| set(&place.join(name)));
    let (code, printed, told) = compare(&arguments(place, primary.path()));
    assert_eq!(code, 0, "{told}");
    assert!(printed.contains("The cheapest way that keeps 95%"), "{printed}");
    let report = report(place);
    let rows = report["rows"].as_array().unwrap();
    // First stage, fallback, full, two top-k; the last four of these mixed with the first stage; two budgets.
    assert_eq!(rows.len(), 11);
    let row = |way: &str| rows.iter().find(|row| row["way"] == way && row["fused"].is_null()).unwrap();
    let number = |way: &str, key: &str| row(way)[key].as_f64().unwrap();
    assert_eq!((number("full", "tau"), number("full", "p"), number("full", "degraded")), (1.0, 1.0, 0.0));
    assert_eq!(number("first stage", "device_ms"), 0.0);
    assert!(number("top 3", "device_ms") < number("top 10", "device_ms"));
    for row in rows {
        let sets = row["by_set"].as_array().unwrap();
        let mean = sets.iter().map(|value| value.as_f64().unwrap()).sum::<f64>() / 2.0;
        assert!((row["ndcg"].as_f64().unwrap() - mean).abs() < 1e-12 && mean > 0.0 && mean <= 1.0, "{row}");
    }
    let page = fs::read_to_string(place.join("report.html")).unwrap();
    assert_eq!((page.matches("<svg").count(), page.matches("</html>").count()), (2, 1));
    let picture = fs::read_to_string(place.join("frontier.svg")).unwrap();
    assert!(picture.starts_with("<svg xmlns=") && picture.contains("Quality against cost"));
    assert!(!page.contains("http") && !page.contains("NaN") && !page.contains("inf"), "{page}");
    let run = fs::read_to_string(place.join("runs/one/top-10.run")).unwrap();
    assert_eq!(run.lines().count(), 4 * 30);

    // A second run scores no pair again and gives the same figures of quality.
    let sizes = || {
        let files =
            fs::read_dir(place.join("work")).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
        files.sum::<u64>()
    };
    let before = sizes();
    assert!(before > 0);
    assert_eq!(compare(&arguments(place, primary.path())).0, 0);
    assert_eq!(sizes(), before);
    let again = crate::report(place);
    let quality = |report: &Value| {
        let mut values: Vec<String> = report["rows"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|row| !row["way"].as_str().unwrap().starts_with("budget"))
            .map(|row| format!("{} {} {}", row["way"], row["fused"], row["by_set"]))
            .collect();
        values.sort();
        values
    };
    assert_eq!(quality(&report), quality(&again));
}

#[test]
fn a_way_that_refuses_is_not_recommended() {
    let place = tempfile::tempdir().unwrap();
    let (place, primary) = (place.path(), small_model());
    ["one", "two", "three"].iter().for_each(|name| set(&place.join(name)));
    let more = ["--rate", "1000000"].map(str::to_owned).to_vec();
    let (code, printed, told) = compare(&[arguments(place, primary.path()), more].concat());
    assert_eq!(code, 0, "{told}");
    let report = report(place);
    let budget = report["rows"].as_array().unwrap().iter().find(|row| row["way"] == "budget 1 ms").unwrap();
    assert!(budget["refused"].as_f64().unwrap() > 0.5, "{budget}");
    assert!(!printed.contains("is budget 1 ms"), "{printed}");
    assert!(printed.contains("The load is more than the primary can answer"), "{printed}");
}

#[test]
fn a_server_stands_beside_the_models_that_it_serves() {
    let place = tempfile::tempdir().unwrap();
    let (place, primary) = (place.path(), small_model());
    ["one", "two", "three"].iter().for_each(|name| set(&place.join(name)));
    let server = Serving::start(&["--primary", primary.path().to_str().unwrap()]);
    let ask = |fields: &str| ["--server".to_owned(), format!("url=http://{},{fields}", server.address)];
    let servers = [ask("name=ours,policy=full"), ask("dialect=tei,policy=fallback")].concat();
    for rate in [&[][..], &["--rate".to_owned(), "400".to_owned()]] {
        let arguments = [&arguments(place, primary.path())[..], &servers, rate].concat();
        let (code, printed, told) = compare(&arguments);
        assert_eq!(code, 0, "{told}");
        assert!(printed.contains("Servers were asked every query over HTTP"), "{printed}");
        let report = report(place);
        let rows = report["rows"].as_array().unwrap();
        let row = |name: &str| rows.iter().find(|row| row["name"] == name).unwrap();
        let theirs = format!("{} tei policy=fallback", server.address);
        for (asked, own, degraded) in [("ours", "full", 0.0), (&theirs, "fallback", 1.0)] {
            let (asked, own) = (row(asked), row(own));
            assert_eq!(asked["by_set"], own["by_set"], "{asked}");
            assert_eq!((&asked["degraded"], &asked["refused"]), (&json!(degraded), &json!(0.0)));
            let positive = |key: &str| asked[key].as_f64().is_some_and(|value| value > 0.0);
            let costs = ["device_ms", "p50_ms", "p99_ms"];
            assert!(costs.into_iter().all(positive), "{asked}");
        }
        assert!(fs::read_to_string(place.join("report.html")).unwrap().contains("over HTTP"));
        assert!(
            fs::read_to_string(place.join("runs/one/server-ours.run")).unwrap().lines().count() == 4 * 30
        );
    }
    let address = server.address.clone();
    drop(server);
    let arguments = [&arguments(place, primary.path())[..], &servers].concat();
    let (code, _, told) = compare(&arguments);
    assert!(code == 69 && told.contains(&format!("http://{address}: refused: ")), "{code}, {told}");
}

/// A server of TEI's dialect that closes the connection in place of some answers, chosen by number.
fn flaky(closes: fn(usize) -> bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut line, mut length) = (String::new(), 0);
            while stream.read_line(&mut line).unwrap() > 2 {
                length = line.strip_prefix("content-length: ").map_or(length, |n| n.trim().parse().unwrap());
                line.clear();
            }
            stream.read_exact(&mut vec![0; length]).unwrap();
            if !closes(number) {
                let scores: Vec<_> = (0..30).map(|n| json!({"index": n, "score": n})).collect();
                let body = json!(scores).to_string();
                let head =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                stream.get_mut().write_all((head + &body).as_bytes()).unwrap();
            }
        }
    });
    address
}

#[test]
fn a_server_that_fails_is_told_and_waited_for_in_vain_only_so_often() {
    let place = tempfile::tempdir().unwrap();
    let (place, primary) = (place.path(), small_model());
    ["one", "two", "three"].iter().for_each(|name| set(&place.join(name)));
    let with = |address: &str| {
        let server = ["--server".to_owned(), format!("url=http://{address},dialect=tei,name=peer")];
        compare(&[&arguments(place, primary.path())[..], &server].concat())
    };
    let (code, printed, told) = with(&flaky(|number| number == 4));
    assert!(code == 75 && told.contains("peer: {\"connection lost\": 1}"), "{code}, {told}");
    assert!(printed.contains("peer did not answer 1 connection lost"), "{printed}");
    let report = report(place);
    let row = report["rows"].as_array().unwrap().iter().find(|row| row["name"] == "peer").unwrap();
    assert_eq!((&row["refused"], &row["faults"]["connection lost"]), (&json!(0.125), &json!(1)));
    assert!(row.get("device_ms").is_none() && printed.contains('–'), "{row}");
    let (code, _, told) = with(&flaky(|number| number > 2));
    assert!(code == 69 && told.contains("connection lost"), "{code}, {told}");
}

#[test]
fn bad_input_is_named() {
    let place = tempfile::tempdir().unwrap();
    let (place, primary) = (place.path(), small_model());
    ["one", "two", "three", "empty", "bad"].iter().for_each(|name| set(&place.join(name)));
    fs::write(place.join("empty/qrels.tsv"), "").unwrap();
    fs::write(place.join("bad/corpus.jsonl"), "{\"_id\": \"x0\", \"text\": \"a\"}\n{\"_id\": 1}\n").unwrap();
    fs::write(place.join("file"), "").unwrap();
    let at = |name: &str| place.join(name).to_str().unwrap().to_owned();
    let rows: [(&[&str], i32, &str); 19] = [
        (&["--top-k", "0"], 64, "0 is not in 1..=100000"),
        (&["--budgets-ms", "18446744073709551615"], 64, "is not in 1..=3600000"),
        (&["--rate", "1e-9"], 64, "--rate: 0.000000001 is not between 0.001"),
        (&["--fallback", primary.path().to_str().unwrap()], 64, "--fallback: is the same model as --primary"),
        (&["--tune", &at("one")], 64, "is reported on too"),
        (&["--server", "url=http://x:99999"], 64, "--server: `http://x:99999` is not "),
        (&["--server", "url=http://x,name="], 64, "--server: name: `` is not "),
        (&["--server", "name=x"], 64, "--server: `` is not "),
        (&["--server", "url=http://x,dialect=oip"], 64, "--server: the dialect oip needs a model"),
        (&["--server", "url=http://x,weight=2"], 64, "--server: weight: a server gets requests of one kind"),
        (&["--server", "url=http://x,tier=1"], 64, "--server: `tier` is not one of "),
        (&["--keep", "2"], 64, "--keep: 2 is not between"),
        (&["--primary", "/nowhere"], 64, "--primary: there is no directory /nowhere; give a directory"),
        (&["--tune", &at("empty")], 65, "no query has both judgements and candidates"),
        (&["--tune", &at("bad")], 65, "corpus.jsonl:2: "),
        (&["--tune", &at("nowhere")], 66, "nowhere/corpus.jsonl: "),
        (&["--work", &at("file")], 74, "file: "),
        (&["--runs", &at("file")], 74, "file: "),
        (&["--html", &at("nowhere/x.html")], 74, "nowhere/x.html: "),
    ];
    for (change, code, expected) in rows {
        let mut arguments = arguments(place, primary.path());
        match arguments.iter().position(|argument| argument == change[0]) {
            Some(found) => arguments[found + 1] = change[1].to_owned(),
            None => arguments.extend(change.iter().map(|&part| part.to_owned())),
        }
        let (found, _, told) = compare(&arguments);
        assert!(found == code && told.contains(expected), "{change:?}: {found}, {told}");
    }
    let same = ["--server", "url=http://x,name=a/b", "--server", "url=http://x,name=a:b"].map(str::to_owned);
    let (code, _, told) = compare(&[&arguments(place, primary.path())[..], &same].concat());
    assert!(code == 64 && told.contains("two servers have the name `a:b`"), "{told}");
    let twice = [arguments(place, primary.path()), vec![at("one")]].concat();
    let (code, _, told) = compare(&twice);
    assert!(code != 0, "{told}");
}
