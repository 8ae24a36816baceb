//! The commands as a user runs them: output, failures, and data that survives a kill.

mod common;

use common::{Reply, Serving, bert, data, podium, post, random_plan, small_model};
use podium::model::{Bert, Forward, Model, Tensor};
use podium::token::{Packed, PairReader};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn run(arguments: &[&str]) -> (i32, String, String) {
    answer(podium(arguments).output().unwrap())
}

fn run_with_input(arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut child = podium(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that fails early does not read its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    answer(child.wait_with_output().unwrap())
}

fn answer(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

#[test]
fn a_model_that_cannot_be_served_is_named_before_a_port_is_bound() {
    type Damage = fn(&Path);
    fn edit(path: &Path, from: &str, to: &str) {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains(from));
        fs::write(path, text.replace(from, to)).unwrap();
    }
    let rows: [(Damage, &str); 10] = [
        (|d| fs::remove_file(d.join("tokenizer.json")).unwrap(), "tokenizer.json is missing"),
        (|d| fs::write(d.join("tokenizer.json"), "{}").unwrap(), "tokenizer.json"),
        (|d| fs::remove_file(d.join("config.json")).unwrap(), "config.json is missing"),
        (|d| fs::write(d.join("config.json"), "{").unwrap(), "config.json"),
        (
            |d| edit(&d.join("config.json"), "BertForSequence", "GptForSequence"),
            "GptForSequenceClassification",
        ),
        (|d| edit(&d.join("config.json"), "\"hidden_size\": 32", "\"hidden_size\": 33"), "hidden_size"),
        (|d| edit(&d.join("config.json"), "\"vocab_size\": 100", "\"vocab_size\": 50"), "shape [100, 32]"),
        (|d| fs::remove_file(d.join("model.safetensors")).unwrap(), "model.safetensors is missing"),
        (
            |d| {
                let bytes = fs::read(d.join("model.safetensors")).unwrap();
                fs::write(d.join("model.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
            },
            "model.safetensors",
        ),
        (
            |d| {
                let mut bytes = fs::read(d.join("model.safetensors")).unwrap();
                let end = bytes.len();
                bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
                fs::write(d.join("model.safetensors"), &bytes).unwrap();
            },
            "holds NaN",
        ),
    ];
    // The port is taken, so a command that got as far as listening would fail with another code.
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap().to_string();
    for (damage, expected) in rows {
        let model = small_model();
        damage(model.path());
        let directory = model.path().to_str().unwrap();
        let (code, _, errors) = run(&["serve", "--primary", directory, "--listen", &address]);
        assert!(code == 64 && errors.contains(expected), "{expected}: {code} {errors}");
        let (code, _, errors) = run_with_input(&["rank", "--model", directory, "-q", "a"], "b\n");
        assert!(code == 64 && errors.contains(expected), "{expected}: {code} {errors}");
    }
    let model = small_model();
    let directory = model.path().to_str().unwrap();
    let (code, _, errors) = run(&["serve", "--primary", directory, "--listen", &address]);
    assert!(code == 69 && errors.contains(&address), "{code} {errors}");
}

#[test]
fn a_configuration_that_is_wrong_is_named() {
    let model = small_model();
    let directory = model.path().to_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("podium.toml");
    let rows = [
        ("listen = ['nowhere']", "listen"),
        ("typo = 1", "typo"),
        ("[http]\nbody_bytes_max = 1", "http.body_bytes_max: 1 is less than 1024"),
        ("[prices]\ndollars_per_kwh = -1.0", "prices.dollars_per_kwh"),
        ("[tls]\ncertificate = '/none.pem'\nkey = '/none.pem'", "/none.pem"),
        ("ledger = '/none/ledger.sqlite'", "/none/ledger.sqlite"),
        ("journal = '/none/journal.jsonl'", "/none/journal.jsonl"),
    ];
    for (text, expected) in rows {
        fs::write(&file, text).unwrap();
        let (code, _, errors) = run(&[
            "serve",
            "--primary",
            directory,
            "--listen",
            "127.0.0.1:0",
            "--config",
            file.to_str().unwrap(),
        ]);
        assert!(code == 64 && errors.contains(expected), "{expected}: {code} {errors}");
    }
    for arguments in [
        &["serve", "--primary", "none"][..],
        &["serve", "--listen", "x"],
        &["rank"],
        &["nothing"],
        &["serve", "--config", "/none.toml"],
    ] {
        assert_eq!(run(arguments).0, 64, "{arguments:?}");
    }
    let (code, _, errors) = run(&["serve", "--primary", "nobody/no-such-model"]);
    assert!(code == 64 && errors.contains("neither a directory nor in the hub cache"), "{code} {errors}");
}

#[test]
fn without_a_model_the_bundled_one_answers_and_makes_sense() {
    let server = Serving::start(&[]);
    let berlin = json!({
        "query": "how many people live in berlin?", "scores": "logit",
        "documents": ["Berlin is well known for its museums.",
            "Berlin has a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers."],
    });
    let reply = server.send(&post("/v1/rank", "", berlin.to_string()));
    let answer: Value = serde_json::from_str(&reply.text()).unwrap();
    assert_eq!((&answer["results"][0]["index"], &answer["tier"]), (&json!(1), &json!("full")), "{answer}");
    assert_eq!(answer["model"], "podium-student-L2-H128");
    let (high, low) = (&answer["results"][0]["score"], &answer["results"][1]["score"]);
    assert!(high.as_f64().unwrap() > 0.0 && low.as_f64().unwrap() < -4.0, "{answer}");
}

#[test]
fn a_check_prints_what_would_run() {
    let model = small_model();
    let (code, printed, _) = run(&["serve", "--primary", model.path().to_str().unwrap(), "--check"]);
    assert_eq!(code, 0);
    assert!(printed.contains("primary") && printed.contains("listen    http://127.0.0.1:8080"), "{printed}");
}

#[test]
fn the_longest_pair_is_what_the_files_say_or_the_configuration() {
    let model = small_model();
    let directory = model.path().to_str().unwrap();
    let file = model.path().join("podium.toml");
    let check = |more: &str| {
        fs::write(&file, format!("[primary]\nmodel = '{directory}'\n{more}")).unwrap();
        run(&["serve", "--check", "--config", file.to_str().unwrap()])
    };
    let reads = |more: &str, tokens: u32| {
        let (code, printed, errors) = check(more);
        assert_eq!(code, 0, "{errors}");
        let first = printed.lines().next().unwrap();
        assert!(first.ends_with(&format!("reads {tokens} tokens a pair")), "{first}");
    };
    reads("", 64);
    reads("max_tokens = 5", 5);
    fs::write(model.path().join("tokenizer_config.json"), r#"{"model_max_length": 48}"#).unwrap();
    reads("", 48);
    // The configuration may say more than the files, up to the positions.
    reads("max_tokens = 64", 64);
    for tokens in [4, 65] {
        let (code, _, errors) = check(&format!("max_tokens = {tokens}"));
        let expected = format!("primary.max_tokens: {tokens} is not between 5");
        assert!(code == 64 && errors.contains(&expected), "{errors}");
    }
    fs::write(model.path().join("tokenizer_config.json"), r#"{"model_max_length": 4}"#).unwrap();
    let (code, _, errors) = check("");
    assert!(code == 64 && errors.contains("its files say 4 tokens a pair"), "{errors}");
}

#[test]
fn a_model_with_other_scores_than_its_golden_pairs_is_not_served() {
    let model = small_model();
    let directory = model.path().to_str().unwrap();
    let golden = |json: &str| fs::write(model.path().join("golden.json"), json).unwrap();
    let pair = |logit: f32| format!(r#"[{{"query": "ab", "document": "abc", "logit": {logit}}}]"#);
    golden(&pair(100.0));
    let (code, printed, errors) = run(&["models", "inspect", directory]);
    assert!(code == 0 && printed.contains("golden pairs  1 in golden.json"), "{printed} {errors}");
    let model_only = ["--primary", directory, "--fallback", "none", "--precision", "f32"];
    let serve = [&["serve", "--listen", "127.0.0.1:0"], &model_only[..]].concat();
    let (code, _, errors) = run(&serve);
    assert_eq!(code, 64, "{errors}");
    let got = errors.split("logit 100 expected, ").nth(1).and_then(|rest| rest.split(" got, ").next());
    let got: f32 = got.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{errors}"));
    assert!(errors.contains("pair 0 (\"ab\", \"abc\")"), "{errors}");
    let rank = ["rank", "--model", directory, "--precision", "f32", "-q", "ab", "--logits"];
    let (code, _, errors) = run_with_input(&rank, "abc\n");
    assert!(code == 64 && errors.contains("logit 100 expected"), "{code} {errors}");
    let (code, printed, errors) = run_with_input(&[&rank[..], &["--no-self-check"]].concat(), "abc\n");
    assert!(code == 0 && printed.trim_start().starts_with(&format!("{got:.6}")), "{printed} {errors}");
    // A check scores them as a start does.
    let check = |more: &[&str]| run(&[&["serve", "--check"], &model_only[..], more].concat());
    let (code, printed, errors) = check(&[]);
    assert!(code == 64 && errors.contains("logit 100 expected") && printed.is_empty(), "{code} {errors}");
    let (code, printed, errors) = check(&["--no-self-check"]);
    assert!(code == 0 && printed.starts_with("primary"), "{code} {errors}");
    // By flag and by key it is served, and with the right score without either.
    Serving::start(&[&model_only[..], &["--no-self-check"]].concat());
    let file = model.path().join("podium.toml");
    fs::write(&file, "self_check = false\n").unwrap();
    Serving::start(&[&model_only[..], &["--config", file.to_str().unwrap()]].concat());
    golden(&pair(got));
    Serving::start(&model_only);
    let (code, printed, errors) = check(&[]);
    assert!(code == 0 && printed.starts_with("primary"), "{code} {errors}");
    golden("[{}]");
    let (code, _, errors) = run(&serve);
    assert!(code == 64 && errors.contains("golden.json: missing field `query`"), "{code} {errors}");
    golden(&pair(got).replace("\"logit\"", "\"instruction\": \"judge\", \"logit\""));
    let (code, _, errors) = check(&[]);
    assert!(
        code == 64 && errors.contains("golden.json: pair 0: instruction: the model's prompt"),
        "{code} {errors}"
    );
    // Without the check the file is not read.
    golden("[{}]");
    let (code, _, errors) = check(&["--no-self-check"]);
    assert_eq!(code, 0, "{errors}");
}

/// A file of 4 GB that takes no room on the disk, of which only the header can be read in the time of a test.
#[test]
fn a_model_that_does_not_fit_is_refused_before_its_weights_are_read() {
    let model = small_model();
    let weights = model.path().join("model.safetensors");
    let shape = Bert { vocabulary: 100, ..bert(2, 32, 4, 64) };
    let small = random_plan(shape.plan(), 3).to_safetensors().unwrap();
    let header_bytes = u64::from_le_bytes(small[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Map<String, Value> =
        serde_json::from_slice(&small[8..][..header_bytes]).unwrap();
    let (vocabulary, hidden) = (30_000_000_usize, 32);
    // The tensors follow each other in f32, the table of words last.
    let (mut at, words) = (0, "bert.embeddings.word_embeddings.weight");
    let mut names: Vec<String> = header.keys().filter(|name| *name != "__metadata__").cloned().collect();
    names.sort_by_key(|name| name == words);
    for name in names {
        let tensor = &mut header[&name];
        if name == words {
            tensor["shape"] = json!([vocabulary, hidden]);
        }
        let values: u64 =
            tensor["shape"].as_array().unwrap().iter().map(|size| size.as_u64().unwrap()).product();
        (tensor["dtype"], tensor["data_offsets"]) = (json!("F32"), json!([at, at + 4 * values]));
        at += 4 * values;
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = fs::File::create(&weights).unwrap();
    file.write_all(&[&(header.len() as u64).to_le_bytes()[..], &header].concat()).unwrap();
    file.set_len(8 + header.len() as u64 + at).unwrap();
    let config = Bert { vocabulary, ..shape }.to_config().to_string();
    fs::write(model.path().join("config.json"), config).unwrap();
    let serve = podium(&["serve", "--check", "--fallback", "none", "--precision", "f32", "--primary"]);
    // `ulimit` counts in KB.
    let limited = |program: &Command, flag: &str, kilobytes: u64| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit {flag} {kilobytes} && exec \"$0\" \"$@\"")]);
        command.arg(program.get_program()).args(program.get_args()).arg(model.path());
        command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        answer(command.output().unwrap())
    };
    let (code, printed, errors) = limited(&podium(&["models", "inspect"]), "-v", 3_000_000);
    assert!(code == 0 && !errors.contains("read and hashed"), "{code} {errors}");
    assert!(
        printed.contains("engine        none: the model takes about 7.68 GB of memory, and "),
        "{printed}"
    );
    assert!(printed.contains("(version unread, "), "{printed}");
    for flag in ["-v", "-d"] {
        let (code, _, errors) = limited(&serve, flag, 3_000_000);
        let expected = "the model takes about 7.68 GB of memory, and ";
        assert!(code == 64 && errors.contains(expected), "{flag}: {code} {errors}");
        assert!(!errors.contains("read and hashed"), "{flag}: {errors}");
    }
}

/// A model of 151 MB in f32, in a file of 76 MB: its maps are packed layer by layer.
#[test]
fn a_model_is_in_memory_once_while_it_is_loaded() {
    let model = small_model();
    let directory = model.path().to_str().unwrap();
    let config = model.path().join("podium.toml");
    // Small batches, so that activations take little.
    fs::write(&config, "[primary]\nbatch_tokens_max = 64\nthreads = 1\n").unwrap();
    let arguments = ["--primary", directory, "--fallback", "none", "--precision", "f32", "--config"];
    let serve = || Serving::start(&[&arguments[..], &[config.to_str().unwrap()]].concat());
    let peak = |serving: &Serving| -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", serving.child.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        1_024 * peak.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap()
    };
    let own = peak(&serve());
    let shape = Bert { vocabulary: 100, ..bert(12, 512, 8, 2_048) };
    let plan = random_plan(shape.plan(), 3);
    fs::write(model.path().join("config.json"), shape.to_config().to_string()).unwrap();
    fs::write(model.path().join("model.safetensors"), plan.to_safetensors().unwrap()).unwrap();
    let served = 4 * plan.parameters() as u64;
    let largest = 4 * plan.tensors().into_iter().map(Tensor::count).max().unwrap() as u64;
    assert!(served > 150_000_000);
    let serving = serve();
    // 32 MB for what a layer takes while it is packed (13 MB laid out, as much before that, and its tensors), which is a
    // smaller share of models with more layers, and for activations.
    let (found, allowed) = (peak(&serving) - own, served * 115 / 100 + largest + (32 << 20));
    assert!(found < allowed, "{found} bytes at the peak, {served} served, {allowed} allowed");
    let opened = Model::open(model.path()).unwrap();
    assert!(opened.plan.tensors().into_iter().all(|tensor| tensor.values.is_empty()));
    let tokenizer = opened.read_tokenizer().unwrap();
    let mut batch = Packed::default();
    let reader = PairReader::new(tokenizer, opened.pair_tokens_max);
    for document in ["abc", "x y z"] {
        reader.push("ab", document, &mut batch).unwrap();
    }
    let expected = Forward::new(&opened.plan).unwrap().logits(&batch).unwrap();
    let body = r#"{"query": "ab", "documents": ["abc", "x y z"], "scores": "logit"}"#;
    let reply = serving.send(&post("/v1/rank", "", body)).json();
    for result in reply["results"].as_array().unwrap() {
        let (index, score) = (result["index"].as_u64().unwrap(), result["score"].as_f64().unwrap());
        assert!((score as f32 - expected[index as usize]).abs() < 1e-3, "{reply} {expected:?}");
    }
}

#[test]
fn a_model_is_shown_with_its_parts_its_prompt_and_its_engine() {
    let (code, printed, errors) = run(&["models", "inspect", "bundled"]);
    assert_eq!(code, 0, "{errors}");
    for expected in [
        "model         podium-student-L2-H128 (version ",
        "architecture  bert, ",
        "layers        2 x 128, 4 heads of 32, all tokens see all, feed-forward of 512, layer norm after each part\n",
        "score         a dense map and a classifier with one label, at the first token\n",
        "prompt        [CLS] {query} [SEP] {document} [SEP]\n",
        "prompt's ids  101 {query} 102 {document} 102\n",
        "golden pairs  6 in golden.json",
        "instruction   a request's `instruction` is ignored: the prompt has no place for one\n",
        "longest pair  512 tokens; a longer one is cut as the server is configured\n",
        "on a GPU      runs in f16, bf16 or fp8\n",
        "engine        cpu in ",
    ] {
        assert!(printed.contains(expected), "{expected}: {printed}");
    }
    let places = ["deberta_v2", "modernbert_cls"].map(|name| format!("tests/fixtures/encoders/{name}"));
    let [deberta, modern] = places.each_ref().map(|place| common::root().join(place));
    let on_gpu = |place: &Path| {
        let model = small_model();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(place.join(file), model.path().join(file)).unwrap();
        }
        let (code, printed, errors) = run(&["models", "inspect", model.path().to_str().unwrap()]);
        assert_eq!(code, 0, "{errors}");
        printed.lines().find_map(|line| line.strip_prefix("on a GPU      ")).unwrap().to_owned()
    };
    assert_eq!(on_gpu(&deberta), "does not run: its attention has relative positions");
    assert_eq!(on_gpu(&modern), "runs in f16 or bf16");
    let (code, _, errors) = run(&["models", "inspect", "nowhere"]);
    assert!(code == 64 && errors.contains("there is no directory nowhere"), "{errors}");
}

#[test]
fn a_check_finds_what_serving_would_stumble_over() {
    let model = small_model();
    let journal = model.path().join("config.json");
    let check = |more: &[&str]| {
        run(&[&["serve", "--primary", model.path().to_str().unwrap(), "--check"], more].concat())
    };
    for (arguments, expected) in [
        (
            &["--ledger", "/nowhere/ledger.sqlite"][..],
            "ledger: the folder of /nowhere/ledger.sqlite does not exist",
        ),
        (&["--journal", journal.to_str().unwrap()], "already exists"),
        (&["--ledger", "/tmp"], "/tmp"),
        (&["--ledger", journal.to_str().unwrap()], "not a database, or damaged"),
        (&["--fallback", model.path().to_str().unwrap()], "fallback.name: the primary has the name"),
        (&["--latency-budget-ms", "-5"], "latency_budget_ms: -5"),
        (&["--precision", "int4"], "one of auto, float, f32, f16, bf16, fp8, int8"),
    ] {
        let (code, _, errors) = check(arguments);
        assert!(code == 64 && errors.contains(expected), "{expected}: {code} {errors}");
    }
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let binary = Command::new(env!("CARGO_BIN_EXE_podium"))
        .args(["serve", "--check", "--primary", model.path().to_str().unwrap()])
        .stdout(full)
        .stderr(Stdio::null())
        .status();
    assert_eq!(binary.unwrap().code(), Some(74));
}

#[test]
fn a_model_for_a_gpu_runs_on_the_cpu_where_there_is_none() {
    let model = small_model();
    let file = model.path().join("podium.toml");
    let directory = model.path().to_str().unwrap();
    let check = |more: &str| {
        let engine = if cfg!(feature = "cuda") { "cuda" } else { "auto" };
        let text = format!("[primary]\nmodel = '{directory}'\nengine = '{engine}'\n{more}");
        fs::write(&file, text).unwrap();
        run(&["serve", "--check", "--config", file.to_str().unwrap()])
    };
    let (code, printed, log) = check("");
    assert_eq!(code, 0, "{log}");
    if printed.contains("on gpu") {
        return eprintln!("SKIPPED: there is a GPU");
    }
    assert!(printed.lines().next().unwrap().contains(" on cpu; "), "{printed}");
    assert_eq!(log.contains("no GPU can be used"), cfg!(feature = "cuda"), "{log}");
    for precision in ["f16", "fp8"] {
        let (code, printed, log) =
            run(&["serve", "--check", "--primary", directory, "--precision", precision]);
        if cfg!(feature = "cuda") {
            assert!(code == 0 && printed.contains(" on cpu; "), "{precision}: {code} {log}");
            assert!(log.contains("no GPU can be used") && log.contains("the tier runs on the CPU"), "{log}");
        } else {
            assert!(code == 64 && log.contains("is for GPUs"), "{precision}: {code} {log}");
        }
    }
    let (code, _, log) = check("[[prices.devices]]\nname = 'gpu'\ndollars_per_hour = 2.0");
    assert!(code == 64 && log.contains("primary.device: prices.devices has no price for `cpu`"), "{log}");
    fs::write(&file, "[primary]\nengine = 'cuda'").unwrap();
    let (code, _, log) = run(&["serve", "--check", "--config", file.to_str().unwrap()]);
    let refused =
        code == 64 && log.contains("primary.engine: this program was built without the feature cuda");
    assert_eq!(refused, !cfg!(feature = "cuda"), "{code} {log}");
}

#[test]
fn help_teaches() {
    for (command, expected) in [("rank", "--jsonl each line is a whole request"), ("serve", "Flags win over")]
    {
        let (code, printed, _) = run(&[command, "--help"]);
        assert!(code == 0 && printed.contains(expected), "{printed}");
    }
}

#[test]
fn lines_are_ranked_as_text_and_as_json() {
    let model = small_model();
    let directory = model.path().to_str().unwrap();
    let rank = |more: &[&str], input: &str| {
        let (code, printed, errors) =
            run_with_input(&[&["rank", "--model", directory], more].concat(), input);
        assert_eq!(code, 0, "{errors}");
        printed
    };
    let lines = rank(&["-q", "ab"], "abc\n\nx y z\nq\n");
    let order: Vec<&str> = lines.lines().map(|line| line.rsplit('\t').next().unwrap()).collect();
    assert_eq!(order.len(), 3);
    let best = rank(&["-q", "ab", "--top-n", "1", "--json"], "abc\nx y z\nq\n");
    let best: Value = serde_json::from_str(&best).unwrap();
    assert_eq!((&best["results"][0]["document"], &best["query"]), (&json!(order[0]), &json!("ab")));
    let requests =
        "{\"query\": \"ab\", \"documents\": [\"abc\", \"q\"]}\n{\"query\": \"q\", \"documents\": []}\n";
    assert_eq!(rank(&["--jsonl", "--json"], requests).lines().count(), 2);
    assert_eq!(rank(&["-q", "ab"], ""), "");

    // The words of a task are read, and told to have no effect on this model.
    let instructed = "{\"query\": \"ab\", \"documents\": [\"abc\"], \"instruction\": \"judge\"}\n";
    let arguments = ["rank", "--model", directory, "--jsonl"];
    let (code, _, errors) = run_with_input(&arguments, &instructed.repeat(2));
    let told = "podium: standard input:1: `instruction` was ignored: the prompt of `";
    assert!(code == 0 && errors.starts_with(told) && errors.lines().count() == 1, "{code} {errors}");
    let (code, _, errors) = run_with_input(&arguments, &instructed.replace("instruction", "task"));
    assert!(code == 65 && errors.contains("unknown field `task`"), "{code} {errors}");
    let log = model.path().join("log.jsonl");
    fs::write(&log, instructed).unwrap();
    let (code, _, errors) = run(&["load", "--dialect", "tei_predict", "--requests", log.to_str().unwrap()]);
    let expected = "--requests: a request has an `instruction`, and the dialect tei_predict no field for one";
    assert!(code == 64 && errors.contains(expected), "{code} {errors}");

    let (code, _, errors) = run_with_input(&["rank", "--model", directory, "--jsonl"], "{\"query\": 1}\n");
    assert!(code == 65 && errors.contains("standard input:1"), "{code} {errors}");
    let (code, _, errors) = run(&["rank", "--model", directory, "-q", "a", "/none.txt"]);
    assert!(code == 66 && errors.contains("/none.txt"), "{code} {errors}");
}

#[test]
fn what_a_ranking_did_not_read_is_said_and_may_be_refused() {
    let model = small_model();
    // The model reads 64 tokens, 3 of them special: 48 of the query, and 13 of a document.
    let (query, long) = ("a ".repeat(100), "b ".repeat(20));
    let rank = |more: &[&str], input: &str| {
        let arguments = ["rank", "--model", model.path().to_str().unwrap(), "-q", &query, "--json"];
        run_with_input(&[&arguments, more].concat(), input)
    };
    let (code, printed, errors) = rank(&[], &format!("x\n{long}\n"));
    let said =
        "podium: not all was read: 1 documents lost tokens, and the query lost 52 (see --truncation)\n";
    assert_eq!((code, errors.as_str()), (0, said));
    let printed: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(printed["truncated"], json!({"documents": 1, "query_tokens": 52}));
    let score = |more: &[&str], input: &str| {
        let (code, printed, errors) = rank(more, input);
        assert_eq!(code, 0, "{errors}");
        serde_json::from_str::<Value>(&printed).unwrap()["results"][0]["score"].clone()
    };
    assert_eq!(score(&["--query-tokens-max", "48"], "x\n"), score(&[], "x\n"));
    assert_eq!(score(&["--document-tokens-max", "13"], &long), score(&[], &"b ".repeat(13)));
    assert_ne!(score(&["--truncation", "longest_first"], "x\n"), score(&[], "x\n"));
    assert_ne!(score(&["--pair-tokens-max", "32"], "x\n"), score(&[], "x\n"));
    let (code, _, errors) = rank(&["--truncation", "refuse"], "x\n");
    assert_eq!(code, 65);
    assert!(errors.contains("query: the query has 100 tokens and must have fewer than 61"), "{errors}");
    // A document is named by its place among all.
    let documents = "x\n".repeat(100) + &"b ".repeat(200);
    let more = ["--truncation", "refuse", "--query-tokens-max", "3"];
    let (code, _, errors) = rank(&more, &documents);
    assert!(code == 65 && errors.contains("documents[100]: the pair has 206 tokens"), "{errors}");
    let (code, _, errors) = rank(&["--truncation", "some"], "x\n");
    assert!(
        code == 64 && errors.contains("one of truncate, longest_first, document_only, refuse"),
        "{errors}"
    );
    let (code, _, errors) = rank(&["--truncation-side", "up"], "x\n");
    assert!(code == 64 && errors.contains("one of left, right"), "{errors}");
}

#[test]
fn the_teacher_ranks_berlin_as_its_papers_say() {
    let Some(data) = data() else { return };
    let model = data.join("models/ms-marco-MiniLM-L-12-v2");
    let passages = "Berlin has a population of 3,520,031 registered inhabitants in an area of 891.82 square \
                    kilometers.\nNew York City is famous for the Metropolitan Museum of Art.\nBerlin is well \
                    known for its museums.\n";
    let question = "How many people live in Berlin?";
    let arguments = ["rank", "--model", model.to_str().unwrap(), "-q", question, "--logits", "--json"];
    let (code, printed, errors) = run_with_input(&arguments, passages);
    assert_eq!(code, 0, "{errors}");
    let printed: Value = serde_json::from_str(&printed).unwrap();
    let results = printed["results"].as_array().unwrap();
    assert_eq!(results[0]["index"], 0);
    assert!(results[0]["score"].as_f64().unwrap() > 8.0, "{printed}");
}

#[test]
fn ten_thousand_idle_connections_leave_room_for_those_that_work() {
    const WANTED: u64 = 10_000;
    let model = small_model();
    let server = Serving::start(&["--primary", model.path().to_str().unwrap()]);
    let files = rlimit::increase_nofile_limit(WANTED + 500).unwrap_or(1024);
    let count = WANTED.min(files.saturating_sub(500));
    if count < WANTED {
        eprintln!("REDUCED to {count} connections: only {files} files may be open");
    }
    let idle: Vec<TcpStream> = (0..count).map(|_| server.connect()).collect();
    (0..20).for_each(|_| drop(server.rank()));
    let metrics = server.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").text();
    let open = metrics.lines().find_map(|line| line.strip_prefix("podium_connections ")).unwrap();
    assert!(open.parse::<u64>().unwrap() >= count, "{open} of {count}");
    drop(idle);
    server.rank();
}

#[test]
fn a_ledger_outlives_kill_9_and_agrees_with_the_answers() {
    let model = small_model();
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger.sqlite");
    let config = folder.path().join("podium.toml");
    fs::write(
        &config,
        format!(
            "ledger = '{}'\nadmin_key = 'key-of-admin'\n[primary]\nmodel = '{}'\n\
             [[prices.devices]]\nname = 'cpu'\ndollars_per_hour = 900.0\n",
            ledger.display(),
            model.path().display()
        ),
    )
    .unwrap();
    let costs = || {
        let (code, printed, errors) =
            run(&["costs", "--ledger", ledger.to_str().unwrap(), "--format", "json", "--by", "tier"]);
        assert_eq!(code, 0, "{errors}");
        let rows: Value = serde_json::from_str(&printed).unwrap();
        let of = |field: &str| {
            // A line without a price has null.
            rows.as_array().unwrap().iter().filter_map(|row| row[field].as_u64()).sum::<u64>()
        };
        (of("requests"), of("device_ns"), of("nanodollars"))
    };
    let (mut requests, mut device, mut dollars) = (0, 0, 0);
    for _ in 0..3 {
        let server = Serving::start(&["--config", config.to_str().unwrap()]);
        for _ in 0..25 {
            let cost = server.rank().json()["cost"].clone();
            requests += 1;
            device += cost["device_ns"].as_u64().unwrap();
            dollars += cost["nanodollars"].as_u64().unwrap();
        }
        // The report includes everything answered before it was requested.
        let report =
            server.send(b"GET /v1/costs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer key-of-admin\r\n\r\n");
        assert_eq!(report.status, 200, "{}", report.text());
        assert_eq!(costs(), (requests, device, dollars));
        // Only answers after that may be lost to the kill.
        server.rank();
        drop(server);
        let after = costs();
        assert!(after.0 == requests || after.0 == requests + 1, "{after:?}");
        (requests, device, dollars) = after;
    }
}

#[test]
fn a_terminal_that_closes_drains_the_server_and_nohup_keeps_it() {
    let signal = |server: &Serving, name: &str| {
        let killed = Command::new("kill").args([name, &server.child.id().to_string()]).status().unwrap();
        assert!(killed.success());
    };
    // The tests themselves may run under `nohup`, whose children ignore the signal as well.
    let mut by_default = Command::new("env");
    by_default.arg("--default-signal=HUP");
    let mut server = Serving::start_by(by_default, &[]);
    server.rank();
    signal(&server, "-HUP");
    // Killed by the signal it would have no code.
    assert_eq!(server.child.wait().unwrap().code(), Some(0));

    let mut server = Serving::start_by(Command::new("nohup"), &[]);
    signal(&server, "-HUP");
    server.rank();
    signal(&server, "-TERM");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

/// Runs a command under a seccomp filter that answers EPERM where a process asks for tiles
/// (`arch_prctl(ARCH_REQ_XCOMP_PERM, ..)`).
const WITHOUT_TILES: &str = "
import ctypes, os, struct, sys
ALLOW, DENY = 0x7FFF0000, 0x00050001
step = lambda code, jt, jf, k: struct.pack('HBBI', code, jt, jf, k)
# The number of the call, then the lower half of its first argument.
steps = [step(0x20, 0, 0, 0), step(0x15, 0, 3, 158), step(0x20, 0, 0, 16), step(0x15, 0, 1, 0x1023),
         step(0x06, 0, 0, DENY), step(0x06, 0, 0, ALLOW)]
code = ctypes.create_string_buffer(b''.join(steps))
program = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', len(steps), ctypes.addressof(code)))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
os.execvp(sys.argv[1], sys.argv[1:])
";

#[cfg(target_arch = "x86_64")]
#[test]
fn a_sandbox_that_denies_tiles_is_named_once_and_vectors_are_used() {
    if !podium::backend::Processor::here().contains(&podium::backend::Processor::Amx) {
        return eprintln!("SKIPPED: this processor has no AMX, or the permission is denied already");
    }
    let own = podium(&["serve", "--check", "--primary", "bundled"]);
    let mut command = Command::new("python3");
    command.args(["-c", WITHOUT_TILES]).arg(own.get_program()).args(own.get_args()).env("NO_COLOR", "1");
    let Ok(output) = command.output() else { return eprintln!("SKIPPED: no python3") };
    let (code, printed, told) = answer(output);
    assert_eq!(code, 0, "{printed}{told}");
    let all = format!("{printed}{told}");
    assert_eq!(all.matches("arch_prctl(ARCH_REQ_XCOMP_PERM) is denied").count(), 1, "{all}");
}

#[test]
fn tiers_on_one_device_give_it_one_price() {
    let model = small_model();
    let file = model.path().join("podium.toml");
    let check = |fallback: &str| {
        let prices = ["fast", "slow"]
            .map(|name| format!("[[prices.devices]]\nname = '{name}'\ndollars_per_hour = 0.05\n"));
        let primary =
            format!("[primary]\nmodel = '{}'\ndevice = 'fast'\nengine = 'cpu'\n", model.path().display());
        fs::write(&file, format!("{primary}[fallback]\ndevice = '{fallback}'\n{}", prices.concat())).unwrap();
        run(&["serve", "--check", "--config", file.to_str().unwrap()])
    };
    assert_eq!(check("fast").0, 0);
    let (code, _, log) = check("slow");
    assert!(code == 64 && log.contains("cpu is `fast` to one tier and `slow` to the other"), "{log}");
}

#[cfg(target_os = "linux")]
#[test]
fn lanes_are_pinned_where_there_are_cores_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("podium.toml");
    fs::write(&file, "[primary]\nlanes = 256\nthreads = 256\npin = true\n").unwrap();
    let (code, _, log) = run(&["serve", "--check", "--config", file.to_str().unwrap()]);
    assert_eq!(code, 64, "{log}");
    if log.contains("the system does not say which cores") {
        return eprintln!("SKIPPED: this system has no list of cores");
    }
    assert!(log.contains("pin: 256 lane(s) of 256 thread(s) need 65536 physical cores"), "{log}");
    let (code, _, log) = run(&["serve", "--check", "--pin"]);
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("the lanes are pinned to hardware threads"), "{log}");
}

#[test]
fn a_name_is_listened_on_with_all_its_addresses() {
    let (code, printed, log) = run(&["serve", "--check", "--listen", "localhost:8123"]);
    assert!(code == 0 && printed.contains("listen    http://127.0.0.1:8123"), "{printed}{log}");
    let (code, _, log) = run(&["serve", "--check", "--listen", "no-such-host.invalid:80"]);
    assert!(code == 64 && log.contains("listen: `no-such-host.invalid:80`: "), "{log}");
    let (code, _, log) = run(&["serve", "--check", "--listen", "8080"]);
    assert!(code == 64 && log.contains("listen: `8080` is not HOST:PORT"), "{log}");
}

#[test]
fn a_variable_that_no_command_reads_is_an_error() {
    let told = podium(&["serve", "--check"]).env("PODIUM_LISTN", "127.0.0.1:1").output().unwrap();
    let log = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.status.code() == Some(64) && log.contains("the nearest name is PODIUM_LISTEN"), "{log}");
    let told = podium(&["rank", "--help"]).output().unwrap();
    let help = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(help.contains("--primary <DIR_OR_HUB_ID>") && help.contains("[env: PODIUM_PRIMARY"), "{help}");
}

#[test]
fn a_server_without_file_descriptors_says_so_once_counts_it_and_goes_on() {
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 64 && exec \"$0\" \"$@\""]);
    let server = Serving::start_by(limited, &[]);
    // It is asked by a connection that it has already.
    let mut asks = BufReader::new(server.connect());
    let failures = |asks: &mut BufReader<TcpStream>| {
        asks.get_mut().write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let metrics = Reply::read(asks).unwrap().text();
        let line = metrics.lines().find(|line| line.starts_with("podium_accept_failures_total ")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as usize
    };
    assert_eq!(failures(&mut asks), 0);
    let flood: Vec<TcpStream> = (0..100).map(|_| server.connect()).collect();
    while failures(&mut asks) < 10 {}
    drop(flood);
    server.rank();
    let (told, failed) = (server.logged("connections could not be accepted"), failures(&mut asks));
    assert!((1..=1 + failed / 100).contains(&told), "{told} lines for {failed} failures");
}

#[test]
fn a_signal_drains_the_server_and_the_ledger_has_its_last_request() {
    let model = small_model();
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger.sqlite");
    let journal = folder.path().join("journal.jsonl");
    let mut server = Serving::start(&[
        "--primary",
        model.path().to_str().unwrap(),
        "--ledger",
        ledger.to_str().unwrap(),
        "--journal",
        journal.to_str().unwrap(),
    ]);
    server.rank();
    let killed = Command::new("kill").args(["-TERM", &server.child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    let (_, printed, _) =
        run(&["costs", "--ledger", ledger.to_str().unwrap(), "--format", "csv", "--by", "tenant"]);
    assert!(printed.contains("\nanonymous,1,2,"), "{printed}");
    let (_, printed, _) = run(&["costs", "--ledger", ledger.to_str().unwrap(), "--by", "hour,tier"]);
    assert!(printed.starts_with("hour "), "{printed}");
    let text = fs::read_to_string(&journal).unwrap();
    assert!(text.lines().count() >= 4 && text.contains("\"Arrive\"") && !text.contains("abc"), "{text}");
    assert_eq!(run(&["costs", "--ledger", "/none.sqlite"]).0, 66);
    assert_eq!(run(&["costs", "--ledger", ledger.to_str().unwrap(), "--from", "yesterday"]).0, 64);
    let backwards = ["--from", "2026-11-25", "--to", "2026-11-24"];
    let (code, _, told) = run(&[&["costs", "--ledger", ledger.to_str().unwrap()], &backwards[..]].concat());
    assert!(code == 64 && told.contains("--to: 2026-11-24"), "{told}");
}
