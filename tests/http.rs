//! The server under abuse: nothing breaks it, and nothing else is lost when it is tried.

mod common;

use common::{Options, Reply, TestServer, logit, post, setup};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use podium::backend::{Play, Script, Scripted};
use podium::base::{Hour, Ns, TenantId};
use podium::engine::{BooksSetup, Setup};
use podium::http::{Policies, ServerLimits, TlsFiles};
use podium::ledger::price::{DevicePrice, PriceBook, PriceConfig};
use podium::ledger::report::Query;
use podium::ledger::store::Store;
use podium::rerank::Policy;
use podium::sched::{Limits, TenantConfig};
use podium::telemetry::spans::{OtlpConfig, Spans};
use podium::wire::{Dialect, Settings};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

fn server() -> TestServer {
    TestServer::start(setup(Scripted::default(), None), Options::default())
}

fn with_limits(limits: ServerLimits) -> TestServer {
    TestServer::start(setup(Scripted::default(), None), Options { limits, ..Options::default() })
}

fn with_script(script: &Script) -> TestServer {
    let scorer = Scripted { script: script.clone(), ..Scripted::default() };
    TestServer::start(setup(scorer, None), Options::default())
}

fn plain() -> Value {
    json!({"query": "ab", "documents": ["abc", "x y z"], "scores": "logit"})
}

/// Whether a plain request is answered as always.
fn works(server: &TestServer) {
    let reply = server.post("/v1/rank", plain().to_string());
    assert_eq!(reply.status, 200, "{}", reply.text());
    let mut expected = [(0, logit("ab", "abc")), (1, logit("ab", "x y z"))];
    expected.sort_by(|a, b| b.1.total_cmp(&a.1));
    let body = reply.json();
    let results = body["results"].as_array().unwrap();
    let found: Vec<_> = results
        .iter()
        .map(|result| (result["index"].as_u64().unwrap(), result["score"].as_f64().unwrap() as f32))
        .collect();
    assert_eq!(found, expected);
}

/// A body that a dialect takes, with its path and where its error message stands.
fn body(dialect: Dialect, query: &str, documents: &[&str]) -> (&'static str, Value, &'static str) {
    let plain = json!({"query": query, "documents": documents});
    match dialect {
        Dialect::Podium => ("/v1/rank", plain, "/error/message"),
        Dialect::Cohere => ("/v1/rerank", plain, "/message"),
        Dialect::CohereV2 => {
            ("/v2/rerank", json!({"model": "m", "query": query, "documents": documents}), "/message")
        }
        // Without a pin its path answers in Cohere's words.
        Dialect::Jina => ("/v1/rerank", plain, "/message"),
        Dialect::Voyage => {
            ("/v1/rerank", json!({"query": query, "documents": documents, "top_k": 5}), "/detail")
        }
        Dialect::Tei => ("/rerank", json!({"query": query, "texts": documents}), "/error"),
        Dialect::Vllm => ("/rerank", plain, "/error/message"),
        Dialect::VllmScore => ("/score", json!({"text_1": query, "text_2": documents}), "/error/message"),
        Dialect::TeiPredict => {
            let inputs: Vec<_> = documents.iter().map(|text| json!([query, text])).collect();
            ("/predict", json!({"inputs": inputs}), "/error")
        }
        Dialect::Infinity => {
            ("/rerank", json!({"query": query, "documents": documents, "raw_scores": false}), "/detail/0/msg")
        }
        Dialect::Nim => {
            let passages: Vec<_> = documents.iter().map(|text| json!({"text": text})).collect();
            ("/v1/ranking", json!({"query": {"text": query}, "passages": passages}), "/detail")
        }
        Dialect::Oip => {
            let input = |name: &str, data: Value, count| json!({"name": name, "datatype": "BYTES", "shape": [count], "data": data});
            let inputs =
                [input("QUERY", json!([query]), 1), input("PASSAGE", json!(documents), documents.len())];
            ("/v2/models/large/infer", json!({"inputs": inputs}), "/error")
        }
    }
}

#[test]
fn health_is_flooded_and_ranking_goes_on() {
    let server = server();
    thread::scope(|scope| {
        for client in 0..64 {
            let server = &server;
            scope.spawn(move || {
                let path = ["/health/live", "/health/ready", "/health", "/metrics"][client % 4];
                let mut stream = BufReader::new(server.connect());
                for _ in 0..100 {
                    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
                    stream.get_mut().write_all(request.as_bytes()).unwrap();
                    assert_eq!(Reply::read(&mut stream).unwrap().status, 200);
                }
            });
        }
        for _ in 0..8 {
            scope.spawn(|| (0..50).for_each(|_| works(&server)));
        }
    });
}

#[test]
fn ten_thousand_documents_are_ranked_and_one_more_is_named() {
    let server = server();
    let documents: Vec<String> =
        (0..10_001_u32).map(|n| format!("{n:b}").replace('0', "a").replace('1', "b")).collect();
    let ranked = server.post("/v1/rank", json!({"query": "q", "documents": documents[1..]}).to_string());
    assert_eq!(ranked.json()["results"].as_array().unwrap().len(), 10_000);
    for dialect in Dialect::ALL {
        let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
        let (path, body, place) = body(dialect, "q", &documents);
        let reply = server.post(path, body.to_string());
        let (status, reply) = (reply.status, reply.json());
        let message = reply.pointer(place).and_then(Value::as_str).unwrap_or_default();
        let is_named = message.contains("10001 are given, and the limit is ");
        assert!(is_named && (400..=422).contains(&status), "{}: {status} {reply}", dialect.name());
    }
    works(&server);
}

#[test]
fn a_body_of_ten_megabytes_is_read_and_cut_to_what_the_model_reads() {
    let server = server();
    let document = "abc ".repeat(10 << 18);
    let reply = server.post("/v1/rank", json!({"query": "q", "documents": [document]}).to_string());
    assert_eq!((reply.status, reply.header("x-podium-truncated")), (200, Some("1")), "{}", reply.text());
}

#[test]
fn a_query_longer_than_the_model_reads_is_cut_and_said_in_headers_and_body() {
    let server = server();
    let body = json!({"query": "a ".repeat(200), "documents": ["b"]}).to_string();
    let reply = server.post("/v1/rank", &body);
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.header("x-podium-truncated"), None);
    assert_eq!(reply.header("x-podium-truncated-query-tokens"), Some("104"));
    assert_eq!(reply.json()["truncated"], json!({"documents": 0, "query_tokens": 104}));
    let reply = server.post_with("/v1/rank", "x-podium-truncation: refuse\r\n", &body);
    assert_eq!(reply.status, 400);
    let message = "query: the query has 200 tokens and must have fewer than 125 to leave room for a document";
    assert_eq!(reply.json()["error"]["message"], message);
    let reply = server.post_with("/v1/rank", "x-podium-pair-tokens-max: 2\r\n", &body);
    assert_eq!((reply.status, &reply.json()["error"]["field"]), (400, &json!("pair_tokens_max")));
    // Nothing is said where nothing was lost.
    let reply = server.post("/v1/rank", json!({"query": "a", "documents": ["b"]}).to_string());
    assert_eq!(
        (reply.header("x-podium-truncated-query-tokens"), &reply.json()["truncated"]),
        (None, &Value::Null)
    );
}

#[test]
fn a_body_past_the_bound_is_refused_by_its_length_or_when_it_is_reached() {
    let server = with_limits(ServerLimits { body_bytes_max: 1 << 20, ..ServerLimits::default() });
    let announced = "POST /rerank HTTP/1.1\r\nhost: x\r\ncontent-length: 10485760\r\n\r\n";
    let mut stream = server.connect();
    stream.write_all(announced.as_bytes()).unwrap();
    let reply = Reply::read(&mut BufReader::new(stream)).unwrap();
    assert_eq!(reply.status, 413);
    assert!(reply.text().contains("longer than 1048576 bytes"), "{}", reply.text());

    let mut stream = server.connect();
    stream.write_all(b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let writer = thread::spawn(move || {
        let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
        // The server stops reading somewhere past the bound.
        while stream.write_all(&chunk).is_ok() {}
    });
    let reply = Reply::read(&mut reader).unwrap();
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (413, &json!("too_large")));
    drop(reader);
    writer.join().unwrap();
    works(&server);
}

#[test]
fn text_that_is_none_is_refused_in_every_dialect() {
    let server = server();
    for dialect in Dialect::ALL {
        let (path, body, _) = body(dialect, "QQQ", &["DDD"]);
        for (good, bad) in
            [("QQQ", &b"a\xff"[..]), ("DDD", &b"\xc3\x28"[..]), ("QQQ", br"\ud800"), ("DDD", br"\udc00x")]
        {
            let text = body.to_string();
            let (before, after) = text.split_once(good).unwrap();
            let reply = server.post(path, [before.as_bytes(), bad, after.as_bytes()].concat());
            assert!((400..=422).contains(&reply.status), "{}: {}", dialect.name(), reply.text());
            assert!(reply.json().is_object());
        }
    }
    works(&server);
}

#[test]
fn a_body_that_is_no_request_is_refused() {
    let server = server();
    let deep = "[".repeat(100_000);
    for text in
        ["", "{", "null", "[]", "7", "{\"query\": 7, \"documents\": []}", "{\"documents\": [\"x\"]}", &deep]
    {
        for path in [
            "/v1/rank",
            "/v1/rerank",
            "/v2/rerank",
            "/rerank",
            "/score",
            "/v1/ranking",
            "/v2/models/large/infer",
        ] {
            let reply = server.post(path, text);
            let start = &text[..text.len().min(20)];
            assert!((400..=422).contains(&reply.status), "{path} {start}: {} {}", reply.status, reply.text());
        }
    }
    works(&server);
}

#[test]
fn unknown_fields_are_named_in_a_warning_and_refused_in_strict_mode() {
    let with_typo = json!({"query": "ab", "documents": ["abc"], "top_m": 1}).to_string();
    let reply = server().post("/v1/rank", &with_typo);
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("x-podium-warning"), Some("unknown field `top_m` was ignored"));
    let settings = Settings { strict: true, ..Settings::default() };
    let strict =
        TestServer::start(setup(Scripted::default(), None), Options { settings, ..Options::default() });
    let reply = strict.post("/v1/rank", &with_typo);
    assert_eq!((reply.status, &reply.json()["error"]["field"]), (400, &json!("top_m")));
    works(&strict);
}

#[test]
fn an_instruction_that_a_model_does_not_read_is_declared_by_every_way_of_giving_it() {
    let server = server();
    let warning = "instruction was ignored by `large`: its prompt has no place for one";
    let body = |field: &str| json!({"query": "ab", "documents": ["abc"], field: "judge"}).to_string();
    let plain = json!({"query": "ab", "documents": ["abc"]}).to_string();
    for reply in [
        server.post("/v1/rank", body("instruction")),
        server.post("/rerank", body("instruct")),
        server.post_with("/v2/rerank", "x-podium-instruction: judge\r\n", &plain),
    ] {
        assert_eq!(
            (reply.status, reply.header("x-podium-warning")),
            (200, Some(warning)),
            "{}",
            reply.text()
        );
    }
    assert_eq!(server.post("/v1/rank", &plain).header("x-podium-warning"), None);
    let reply = server.post_with("/v1/rank", "x-podium-instruction: caf%E9\r\n", &plain);
    let message = "x-podium-instruction: is not UTF-8, plain or percent-encoded";
    assert_eq!((reply.status, &reply.json()["error"]["message"]), (400, &json!(message)));
}

#[test]
fn empty_and_overlong_texts_are_answered_or_named() {
    let server = server();
    let long = "a ".repeat(200);
    for dialect in Dialect::ALL {
        let ask = |query: &str, documents: &[&str]| {
            let (path, body, place) = body(dialect, query, documents);
            let reply = server.post(path, body.to_string());
            let message = reply.json().pointer(place).and_then(Value::as_str).unwrap_or_default().to_owned();
            (reply.status, message)
        };
        let name = dialect.name();
        let (status, message) = ask("", &["x"]);
        assert!(
            status == 200 || message.to_lowercase().contains("query") || message.contains("text_1"),
            "{name}: {status} {message}"
        );
        let (status, message) = ask("q", &[]);
        assert!(status == 200 || !message.is_empty(), "{name}: {status} {message}");
        assert_eq!(ask("q", &["", "x"]).0, 200, "{name}");
        // A dialect that cuts the longer text answers; one that cuts only documents names the query,
        // and one that cuts nothing the pair.
        let (status, message) = ask(&long, &["x"]);
        let is_named = [
            "200 tokens and must have fewer than 125",
            "204 tokens, of which 3 stand around its texts, and the limit is 128",
        ]
        .iter()
        .any(|limit| message.contains(limit));
        assert!(status == 200 || is_named, "{name}: {status} {message}");
    }
    works(&server);
}

#[test]
fn what_is_not_http_is_answered_or_cut_and_nothing_else_is_lost() {
    let server = server();
    for garbage in [
        &b"\x16\x03\x01\x02\x00"[..],
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        &[0xff; 4096],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnot frames",
    ] {
        let mut stream = server.connect();
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    // One that speaks TLS is told that the port is plain.
    let mut stream = server.connect();
    let hello = [&b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03"[..], &[7; 64]].concat();
    stream.write_all(&hello).unwrap();
    let reply = Reply::read(&mut BufReader::new(stream)).unwrap();
    assert_eq!((reply.status, reply.header("x-podium-error")), (400, Some("invalid_request")));
    assert!(reply.text().contains("it is TLS, and this port is plain: use http://"), "{}", reply.text());
    works(&server);
}

#[test]
fn a_header_past_its_bounds_is_refused() {
    let server = server();
    let large = format!("x-large: {}\r\n", "a".repeat(64 << 10));
    let many: String = (0..200).map(|n| format!("x-{n}: 1\r\n")).collect();
    for headers in [large, many] {
        let mut stream = server.connect();
        let _ = stream.write_all(&post("/v1/rank", &headers, plain().to_string()));
        let reply = Reply::read(&mut BufReader::new(stream)).unwrap();
        assert_eq!((reply.status, reply.header("x-podium-error")), (431, Some("header_too_large")));
        let body = reply.json();
        assert!(body["error"]["message"].as_str().unwrap().contains("http.headers_max"), "{body}");
    }
    works(&server);
}

#[test]
fn a_client_that_sends_a_byte_at_a_time_is_cut_and_the_others_are_not() {
    let server =
        with_limits(ServerLimits { header_ms_max: 300, body_ms_max: 300, ..ServerLimits::default() });
    let body = plain().to_string();
    let head = format!("POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    thread::scope(|scope| {
        // One crawls in its header, and is cut; one in its body, and is told.
        for (sent, crawls, status) in [("", head.as_str(), None), (head.as_str(), body.as_str(), Some(408))] {
            let mut stream = server.connect();
            stream.write_all(sent.as_bytes()).unwrap();
            scope.spawn(move || {
                stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
                let mut answer = Vec::new();
                for byte in crawls.bytes() {
                    if stream.write_all(&[byte]).is_err() {
                        break;
                    }
                    match stream.read_to_end(&mut answer) {
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        Ok(_) | Err(_) => break,
                    }
                }
                let found = Reply::read(&mut &answer[..]).map(|reply| reply.status);
                // hyper may tell a slow header, too, before it cuts.
                assert!(found == status || (status.is_none() && found == Some(408)), "{found:?}");
            });
        }
        (0..20).for_each(|_| works(&server));
    });
    works(&server);
}

#[test]
fn a_client_that_leaves_takes_its_work_along() {
    let script = Script::default();
    let server = with_script(&script);
    // The first batch holds the lane until everybody else has come and gone.
    script.extend([Play::Hang(Duration::from_millis(300))]);
    let leavers: Vec<_> = (0..50)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(&post("/v1/rank", "", plain().to_string())).unwrap();
            stream
        })
        .collect();
    while server.handle.inside() < 50 {
        thread::yield_now();
    }
    drop(leavers);
    server.settle();
    works(&server);
    // One that leaves in the middle of its body never came in.
    let mut stream = server.connect();
    stream.write_all(b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"query\"").unwrap();
    drop(stream);
    works(&server);
}

#[test]
fn requests_of_one_connection_are_answered_in_order() {
    let server = server();
    let mut stream = BufReader::new(server.connect());
    let requests: Vec<u8> = (0..20)
        .flat_map(|n| post("/v1/rank", "", json!({"query": "q", "documents": vec!["x"; n]}).to_string()))
        .collect();
    stream.get_mut().write_all(&requests).unwrap();
    for n in 0..20 {
        assert_eq!(Reply::read(&mut stream).unwrap().json()["results"].as_array().unwrap().len(), n);
    }
}

#[test]
fn http_2_without_tls_carries_many_requests_at_once() {
    let server = server();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
        let (client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let requests: Vec<_> = (1..=50_usize)
            .map(|n| {
                let body = json!({"query": "q", "documents": vec!["x"; n]}).to_string();
                let request = http::Request::post("http://x/v1/rank")
                    .body(Full::new(bytes::Bytes::from(body)))
                    .unwrap();
                (n, tokio::spawn(client.clone().send_request(request)))
            })
            .collect();
        for (n, answer) in requests {
            let answer = answer.await.unwrap().unwrap();
            assert_eq!((answer.status().as_u16(), answer.version()), (200, http::Version::HTTP_2));
            let body: Value =
                serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap();
            assert_eq!(body["results"].as_array().unwrap().len(), n);
        }
    });
}

#[test]
fn tls_serves_both_versions_by_what_the_client_prefers() {
    let folder = tempfile::tempdir().unwrap();
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = TlsFiles { certificate: folder.path().join("chain.pem"), key: folder.path().join("key.pem") };
    std::fs::write(&files.certificate, issued.cert.pem()).unwrap();
    std::fs::write(&files.key, issued.signing_key.serialize_pem()).unwrap();
    let options = Options { tls: Some(files), ..Options::default() };
    let server = TestServer::start(setup(Scripted::default(), None), options);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(issued.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    for (protocol, begins) in [(&b"http/1.1"[..], &b"HTTP/1.1 200"[..]), (b"h2", b"\0\0")] {
        let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        let session =
            rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        let mut stream = rustls::StreamOwned::new(session, server.connect());
        let request = match protocol {
            b"h2" => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
            _ => post("/v1/rank", "", plain().to_string()),
        };
        stream.write_all(&request).unwrap();
        let mut start = vec![0; begins.len()];
        stream.read_exact(&mut start).unwrap();
        assert_eq!(start, begins);
        assert_eq!(stream.conn.alpn_protocol(), Some(protocol));
    }
    // A client that speaks no TLS is told so, and only it.
    let mut stream = BufReader::new(server.connect());
    stream.get_mut().write_all(&post("/v1/rank", "", "{}")).unwrap();
    let reply = Reply::read(&mut stream).unwrap();
    assert_eq!(
        (reply.status, &reply.json()["error"]["message"]),
        (400, &json!("this port speaks TLS: use https://"))
    );
    let _ = stream.read_to_end(&mut Vec::new());
    assert_eq!(server.handle.inside(), 0);
}

#[test]
fn connections_past_the_bound_are_turned_away_and_the_rest_served() {
    let server = with_limits(ServerLimits { connections_max: 8, ..ServerLimits::default() });
    let mut held: Vec<_> = (0..8).map(|_| BufReader::new(server.connect())).collect();
    while server.connections.open.load(Ordering::Relaxed) < 8 {
        thread::yield_now();
    }
    let mut turned_away = BufReader::new(server.connect());
    let reply = Reply::read(&mut turned_away).unwrap();
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")));
    for stream in &mut held {
        stream.get_mut().write_all(&post("/v1/rank", "", plain().to_string())).unwrap();
        assert_eq!(Reply::read(stream).unwrap().status, 200);
    }
    drop(held);
    while server.connections.open.load(Ordering::Relaxed) > 0 {
        thread::yield_now();
    }
    works(&server);
    assert_eq!(server.connections.rejected.load(Ordering::Relaxed), 1);
}

#[test]
fn a_drain_answers_who_is_inside_and_turns_away_who_comes() {
    let script = Script::default();
    let server = with_script(&script);
    script.extend([Play::Hang(Duration::from_millis(200))]);
    let mut inside = BufReader::new(server.connect());
    inside.get_mut().write_all(&post("/v1/rank", "", plain().to_string())).unwrap();
    while server.handle.inside() < 1 {
        thread::yield_now();
    }
    let mut idle = BufReader::new(server.connect());
    idle.get_mut().write_all(b"GET /health/ready HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert_eq!(Reply::read(&mut idle).unwrap().status, 200);
    server.drain();
    assert_eq!(Reply::read(&mut inside).unwrap().status, 200);
    // Idle connections are closed, and both have ended.
    assert_eq!(idle.fill_buf().map_or(0, <[u8]>::len), 0);
    assert_eq!(inside.fill_buf().map_or(0, <[u8]>::len), 0);
}

#[test]
fn a_key_is_asked_for_in_the_dialect_s_own_words() {
    let options = || Options { keys: vec![("key-of-acme", TenantId(0))], ..Options::default() };
    let server = TestServer::start(setup(Scripted::default(), None), options());
    for dialect in Dialect::ALL {
        let (path, body, place) = body(dialect, "q", &["x"]);
        for headers in ["", "authorization: Bearer wrong-key\r\n"] {
            let reply = server.post_with(path, headers, body.to_string());
            assert_eq!(reply.status, 401, "{}", dialect.name());
            // Before the body is read, a path that several dialects share answers in all their shapes.
            let shared = ["/message", "/detail", "/error", "/error/message"];
            let message = reply.json();
            let found = shared.iter().chain([&place]).any(|place| {
                message.pointer(place).and_then(Value::as_str).is_some_and(|text| text.contains("API key"))
            });
            assert!(found, "{}: {message}", dialect.name());
        }
        for headers in ["authorization: Bearer key-of-acme\r\n", "x-api-key: key-of-acme\r\n"] {
            assert_eq!(server.post_with(path, headers, body.to_string()).status, 200, "{}", dialect.name());
        }
    }
    assert_eq!(server.get("/health/ready", "").status, 200);
}

#[test]
fn paths_and_methods_that_there_are_not_are_told() {
    let server = server();
    assert_eq!(server.post("/nowhere", "{}").status, 404);
    let reply = server.get("/v1/rank", "");
    assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")));
    assert_eq!(server.post("/metrics", "").header("allow"), Some("GET, HEAD"));
    assert_eq!(server.get("/v2/models/other", "").status, 404);
    assert_eq!(server.get("/v1/models", "").json()["data"][0]["id"], "large");
}

#[test]
fn a_full_server_says_when_to_come_back() {
    let script = Script::default();
    let scorer = Scripted { script: script.clone(), ..Scripted::default() };
    let limits = Limits { jobs_max: 1, ..Limits::default() };
    let server = TestServer::start(Setup { limits, ..setup(scorer, None) }, Options::default());
    script.extend([Play::Hang(Duration::from_millis(300))]);
    let mut first = BufReader::new(server.connect());
    first.get_mut().write_all(&post("/v1/rank", "", plain().to_string())).unwrap();
    while script.left() > 0 {
        thread::yield_now();
    }
    let reply = server.post("/rerank", json!({"query": "q", "texts": ["x"]}).to_string());
    assert_eq!((reply.status, &reply.json()["error_type"]), (429, &json!("Overloaded")));
    assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(Reply::read(&mut first).unwrap().status, 200);
}

#[test]
fn a_score_that_is_no_number_is_an_error_and_not_a_rank() {
    let script = Script::default();
    let server = with_script(&script);
    // The lane is restarted after the first fault, and runs twice before it takes the second try.
    script.extend([Play::NonFinite, Play::Answer, Play::Answer, Play::NonFinite]);
    let reply = server.post("/v1/rank", plain().to_string());
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (500, &json!("model_failed")));
    // The lane rests for a moment, and until then it is said so.
    while server.post("/v1/rank", plain().to_string()).status == 503 {}
    works(&server);
}

#[test]
fn a_trace_is_continued_and_metrics_and_ledger_agree_with_the_answers() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&folder.path().join("ledger.sqlite")).unwrap());
    let devices =
        vec![DevicePrice { name: "cpu".into(), dollars_per_hour: 900.0, watts: 0.0, dollars_per_kwh: None }];
    let prices = PriceBook::new(&PriceConfig { dollars_per_kwh: 0.0, devices }).unwrap();
    let slow = Scripted { per_token: Duration::from_micros(20), ..Scripted::default() };
    let tenants = ["acme", "zeta"].map(|name| (name.into(), TenantConfig::default())).to_vec();
    let books = BooksSetup { prices, store: Some(store.clone()), journal: None };
    let setup = Setup { books, tenants, ..setup(slow.clone(), Some(slow)) };
    let keys = vec![("key-of-acme", TenantId(0)), ("key-of-zeta", TenantId(1))];
    let options = Options { keys, admin: Some("key-of-admin"), ..Options::default() };
    let server = TestServer::start(setup, options);

    let ask = |key: &str, policy: &str| {
        let headers = format!(
            "x-api-key: {key}\r\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\
             x-podium-policy: {policy}\r\n"
        );
        let reply = server.post_with("/v1/rank", &headers, plain().to_string());
        assert_eq!(reply.status, 200, "{}", reply.text());
        let trace = reply.header("traceparent").unwrap();
        assert!(
            trace.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && !trace.contains("00f067aa0ba902b7")
        );
        let cost = reply.json()["cost"].clone();
        assert_eq!(cost["device_ns"].to_string(), reply.header("x-podium-device-ns").unwrap());
        (cost["device_ns"].as_u64().unwrap(), cost["nanodollars"].as_u64().unwrap())
    };
    let mut sums = [(0, 0); 2];
    for n in 0..60 {
        let tenant = n % 2;
        let (device, cost) = ask(["key-of-acme", "key-of-zeta"][tenant], ["full", "fallback", "topk"][n % 3]);
        sums[tenant] = (sums[tenant].0 + device, sums[tenant].1 + cost);
    }
    assert!(sums.iter().all(|&(device, cost)| device > 0 && cost > 0));

    assert_eq!(server.get("/v1/costs", "").status, 401);
    assert_eq!(server.get("/v1/costs", "x-api-key: key-of-acme\r\n").status, 401);
    let admin = "authorization: Bearer key-of-admin\r\n";
    assert_eq!(server.get("/v1/costs?by=x", admin).status, 400);
    let rows = server.get("/v1/costs?group_by=tenant", admin).json();
    for (row, (device, cost)) in rows["data"].as_array().unwrap().iter().zip(sums) {
        assert_eq!(
            (row["device_ns"].as_u64(), row["nanodollars"].as_u64()),
            (Some(device), Some(cost)),
            "{rows}"
        );
        assert_eq!(row["requests"], 30);
    }
    // The file says the same, and loaded costs add up to what the devices cost.
    let file = Store::query(store.path(), &Query { from: Hour(0), ..Query::default() }).unwrap();
    assert_eq!(file[0].nanodollars.unwrap().0, sums[0].1 + sums[1].1);
    assert!(file[0].loaded_nanodollars > file[0].nanodollars);
    // Both lanes are on one CPU, whose hour costs its price once.
    let (loaded, elapsed) = (file[0].loaded_nanodollars.unwrap(), server.handle.now());
    assert!(u128::from(loaded.0) * 3600 <= 900 * u128::from(elapsed.0), "{loaded:?} in {elapsed:?}");

    // Idle time goes on while nothing happens.
    let idle = || -> f64 {
        let metrics = server.get("/metrics", "").text();
        let line = metrics
            .lines()
            .find(|line| line.contains(r#"device="cpu",model="",version="",tier="",use="idle""#))
            .unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let before = idle();
    assert!((0..100_000).any(|_| idle() > before), "{before}");
    let metrics = server.get("/metrics", "").text();
    for line in [
        r#"podium_requests_total{dialect="podium",tenant="acme",outcome="full"} 10"#,
        r#"podium_requests_total{dialect="podium",tenant="zeta",outcome="fallback"} 10"#,
        "podium_documents_total 120",
        r#"podium_lanes_up{model="large",version="0123456789ab",tier="primary"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

#[test]
fn a_flood_without_budgets_is_answered_in_full_or_refused_and_never_degraded() {
    let slow = Scripted { per_token: Duration::from_micros(50), ..Scripted::default() };
    let mut setup = setup(slow, Some(Scripted::default()));
    setup.limits.wait_ns_max = Ns::from_millis(10);
    let server = TestServer::start(setup, Options::default());
    let full: usize = std::thread::scope(|scope| {
        let ask = || {
            let reply = server.post("/v1/rank", plain().to_string());
            if reply.status == 200 {
                assert_eq!(
                    (reply.header("x-podium-tier"), reply.header("x-podium-degraded")),
                    (Some("full"), None)
                );
                return 1;
            }
            assert_eq!((reply.status, reply.header("x-podium-error")), (429, Some("overloaded")));
            assert!(reply.header("retry-after").is_some());
            0
        };
        let clients: Vec<_> =
            (0..16).map(|_| scope.spawn(move || (0..5).map(|_| ask()).sum::<usize>())).collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    assert!(full > 0);
}

#[test]
fn a_request_without_a_policy_gets_that_of_its_tenant_or_its_path_or_the_server() {
    let policies = Policies {
        server: Policy::Fallback,
        paths: vec![("/v1/rerank".to_owned(), Policy::Full)],
        tenants: vec![None, Some(Policy::TopK)],
    };
    let keys = vec![("key-of-acme", TenantId(0)), ("key-of-zeta", TenantId(1))];
    let tenants = ["acme", "zeta"].map(|name| (name.into(), TenantConfig::default())).to_vec();
    let setup = Setup { tenants, ..setup(Scripted::default(), Some(Scripted::default())) };
    let server = TestServer::start(setup, Options { keys, policies, ..Options::default() });
    for (key, path, header, expected) in [
        ("key-of-acme", "/v1/rank", "", "fallback"),
        ("key-of-acme", "/v1/rerank", "", "full"),
        ("key-of-acme", "/v1/rank", "x-podium-policy: full\r\n", "full"),
        ("key-of-zeta", "/v1/rerank", "", "topk"),
        ("key-of-zeta", "/v1/rerank", "x-podium-policy: auto\r\n", "full"),
    ] {
        let reply = server.post_with(path, &format!("x-api-key: {key}\r\n{header}"), plain().to_string());
        assert_eq!(reply.header("x-podium-tier"), Some(expected), "{key} {path} {header}: {}", reply.text());
    }
}

#[test]
fn what_a_client_adds_to_a_request_breaks_no_answer() {
    let server = TestServer::start(setup(Scripted::default(), None), Options::default());
    let mut body = plain();
    for number in 0..30_000 {
        body[format!("field {number}")] = json!(0);
    }
    let reply = server.post("/v1/rank", body.to_string());
    assert_eq!((reply.status, reply.header("x-podium-tier")), (200, Some("full")));
    let reply = server.post_with("/v1/rank", "content-encoding: gzip\r\n", plain().to_string());
    assert_eq!((reply.status, reply.header("x-podium-error")), (415, Some("unsupported_media")));
    assert!(reply.text().contains("content-encoding: gzip is not supported; send the body unencoded"));
    let reply = server.post_with("/v1/rank", "content-encoding: identity\r\n", plain().to_string());
    assert_eq!(reply.status, 200);
}

#[test]
fn a_budget_holds_while_the_primary_hangs_and_the_answer_says_what_it_is() {
    let script = Script::default();
    let primary = Scripted { script: script.clone(), ..Scripted::default() };
    let server = TestServer::start(setup(primary, Some(Scripted::default())), Options::default());
    script.extend([Play::Hang(Duration::from_millis(1_500))]);
    let (path, body, _) = body(Dialect::Tei, "ab", &["abc"]);
    let reply = server.post_with(path, "x-podium-latency-budget-ms: 400\r\n", body.to_string());
    assert_eq!((reply.status, reply.header("x-podium-tier")), (200, Some("fallback")));
    assert_eq!(reply.header("x-podium-degraded"), Some("primary_late"));
    assert!(reply.header("x-podium-elapsed-ms").unwrap().parse::<f64>().unwrap() <= 400.0);
    let spent = server.post_with(path, "x-podium-latency-budget-ms: 0.001\r\n", body.to_string());
    assert_eq!((spent.status, spent.header("x-podium-error")), (504, Some("budget_spent")));
    assert!(spent.text().contains(" ms are needed"), "{}", spent.text());
}

/// Reads one HTTP request of known length and answers it.
fn collect(listener: &std::net::TcpListener) -> (String, Vec<u8>) {
    let (stream, _) = listener.accept().unwrap();
    let mut stream = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
    (head, body)
}

#[test]
fn a_sampled_request_is_a_span_at_the_collector_and_a_collector_that_is_gone_harms_nobody() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let spans = Arc::new(Spans::start(&OtlpConfig { endpoint, sample: 0.0 }, runtime.handle()).unwrap());
    let options = Options { spans: Some(spans.clone()), ..Options::default() };
    let server = TestServer::start(setup(Scripted::default(), None), options);
    works(&server);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let headers = format!("traceparent: 00-{trace}-00f067aa0ba902b7-01\r\n");
    assert_eq!(server.post_with("/v1/rank", &headers, plain().to_string()).status, 200);
    assert_eq!(server.post_with("/v1/rank", &headers, "{}").status, 400);
    thread::scope(|scope| {
        let collected = scope.spawn(|| collect(&listener));
        spans.shutdown();
        let (head, body) = collected.join().unwrap();
        assert!(head.starts_with("POST /v1/traces") && head.contains("application/x-protobuf"), "{head}");
        let holds = |what: &[u8]| body.windows(what.len()).filter(|window| *window == what).count();
        let trace = u128::from_str_radix(trace, 16).unwrap().to_be_bytes();
        // Two requests, and two parts of the one that was answered; what nobody sampled is not here.
        assert_eq!(holds(&trace), 4);
        assert_eq!(holds(&0x00f0_67aa_0ba9_02b7_u64.to_be_bytes()), 2);
        for name in ["rank", "queue", "compute", "podium.tier", "podium.device_ns", "invalid_request"] {
            assert!(holds(name.as_bytes()) > 0, "{name} is not in the spans");
        }
    });
    drop(listener);
    assert_eq!(server.post_with("/v1/rank", &headers, plain().to_string()).status, 200);
    works(&server);
}
