//! Helpers of several test files.

#![allow(dead_code, reason = "each test file uses a part of it")]

use podium::backend::{Scorer, Scripted};
use podium::base::{Ns, TenantId, Tier};
use podium::engine::{
    BooksSetup, Clock, Engine, Handle, LaneSetup, MakeScorer, ModelPool, ModelSetup, PrepareLimits,
    RouteSetup, Setup, Source,
};
use podium::http::{App, Auth, Connections, Policies, Server, ServerLimits, TlsFiles};
use podium::model::{
    Activation, Attention, Bert, Block, Calibration, Embed, Family, FeedForward, Gelu, Head, Linear, Norm,
    NormKind, Norms, Plan, Pool, Reach, Relative, RelativeMaps, Rope, Score, Tensor,
};
use podium::rerank::TruncationDefaults;
use podium::sched::{Limits, TenantConfig};
use podium::telemetry::spans::Spans;
use podium::token::{Cut, Fit, Packed, Pair, Tokenizer};
use podium::wire::Settings;
use rand::RngExt;
use rand_pcg::Pcg64;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;
use tokio::sync::watch;

/// The project's folder: where the test was built, or the current folder for tests built elsewhere.
pub fn root() -> PathBuf {
    let built = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    if built.is_dir() { built } else { std::env::current_dir().expect("a process runs somewhere") }
}

/// The data folder: `$PODIUM_DATA`, else `../shared/data`; none, with a line on stderr, if both are missing.
pub fn data() -> Option<PathBuf> {
    let beside = || root().join("../shared/data");
    let place = std::env::var_os("PODIUM_DATA").map_or_else(beside, PathBuf::from);
    if place.is_dir() {
        return Some(place);
    }
    eprintln!("SKIPPED: no data at {}; set PODIUM_DATA", place.display());
    None
}

/// A BERT tokenizer over single letters: each letter of a word is a token.
pub fn letters() -> Arc<Tokenizer> {
    let file = tempfile::NamedTempFile::new().unwrap();
    save_letters(file.path());
    Arc::new(Tokenizer::parse(&std::fs::read(file.path()).unwrap()).unwrap())
}

/// A directory with a small random model over [`letters`].
pub fn small_model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let fixture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/encoders/bert");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture.join(file), folder.path().join(file)).unwrap();
    }
    save_letters(&folder.path().join("tokenizer.json"));
    folder
}

fn save_letters(path: &Path) {
    let specials = ["[UNK]", "[CLS]", "[SEP]"].map(str::to_owned).into_iter();
    let words = specials.chain(('a'..='z').map(String::from)).chain(('a'..='z').map(|c| format!("##{c}")));
    let vocab: [(String, u32); 55] = words.zip(0..).collect::<Vec<_>>().try_into().unwrap();
    let model = WordPiece::builder().vocab(vocab).unk_token("[UNK]".to_owned()).build().unwrap();
    let mut letters = tokenizers::Tokenizer::new(model);
    letters.with_normalizer(Some(BertNormalizer::default())).unwrap();
    letters.with_pre_tokenizer(Some(BertPreTokenizer));
    letters.with_post_processor(Some(BertProcessing::new(("[SEP]".into(), 2), ("[CLS]".into(), 1))));
    letters.save(path, false).unwrap();
}

/// An engine of scripted scorers over [`letters`]: a primary with one lane, and optionally a fallback.
pub fn setup(primary: impl Scorer + Clone + Sync + 'static, fallback: Option<Scripted>) -> Setup {
    let tokenizer = letters();
    let model = |tier: Tier, name: &str, make: MakeScorer| ModelSetup {
        name: name.into(),
        version: "0123456789ab".into(),
        tier,
        licence: "Apache-2.0".into(),
        tokenizer: tokenizer.clone(),
        pair_tokens_max: 128,
        shares_prefixes: false,
        dtype: "float32",
        dtype_reason: "scripted".into(),
        device: "cpu".into(),
        calibration: Calibration::default(),
        self_check: None,
        lanes: vec![LaneSetup { device: "cpu".into(), batch_tokens_max: 4_096, depth: 2, make }],
    };
    let mut models = vec![model(Tier::Primary, "large", Arc::new(move || Ok(Box::new(primary.clone()))))];
    let small =
        |scorer: Scripted| model(Tier::Fallback, "small", Arc::new(move || Ok(Box::new(scorer.clone()))));
    models.extend(fallback.map(small));
    let route = RouteSetup {
        name: "large".into(),
        primaries: vec!["large".parse().unwrap()],
        fallback: models.get(1).map(|model| model.name.parse().unwrap()),
        ..RouteSetup::default()
    };
    Setup {
        clock: Clock::start(),
        models,
        routes: vec![route],
        tenants: vec![("anonymous".into(), TenantConfig::default())],
        limits: Limits { rest_ns_min: Ns::from_millis(1), ..Limits::default() },
        truncation: TruncationDefaults::default(),
        prepare: PrepareLimits::default(),
        default_budget: None,
        any_model: true,
        books: BooksSetup::default(),
    }
}

/// Runs a future on this thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

/// Starts an engine and waits until it is ready.
pub async fn up(setup: Setup) -> Engine {
    let mut engine = Engine::start(setup).unwrap();
    engine.ready().await.unwrap();
    engine
}

/// The scripted scorer's logit of a pair.
pub fn logit(query: &str, document: &str) -> f32 {
    let tokenizer = letters();
    let limits = Fit::new(128, Cut::DocumentOnly);
    let (query, document) = (tokenizer.encode(query).unwrap(), tokenizer.encode(document).unwrap());
    let mut batch = Packed::default();
    let pair = Pair::fit(query, document, tokenizer.template(), &limits).unwrap();
    pair.push_into(&mut batch, tokenizer.template());
    Scripted::logit(batch.ids())
}

/// The differences of a test's server from the default.
#[derive(Default)]
pub struct Options {
    pub limits: ServerLimits,
    pub policies: Policies,
    pub settings: Settings,
    pub keys: Vec<(&'static str, TenantId)>,
    pub admin: Option<&'static str>,
    pub tls: Option<TlsFiles>,
    pub spans: Option<Arc<Spans>>,
    /// Models that can be loaded.
    pub models: Option<Box<dyn Source>>,
}

/// A server on its own port. Dropping it drains it.
pub struct TestServer {
    pub address: SocketAddr,
    pub handle: Handle,
    pub connections: Arc<Connections>,
    drain: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl TestServer {
    /// Starts a server and waits until it is ready.
    pub fn start(setup: Setup, options: Options) -> Self {
        let (drain, draining) = watch::channel(false);
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let connections = Arc::new(Connections::default());
        let (for_app, open) = (drain.clone(), connections.clone());
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async move {
                let store = setup.books.store.clone();
                let mut engine = Engine::start(setup).unwrap();
                engine.ready().await.unwrap();
                let pool = options.models.map(|models| ModelPool::start(engine.handle(), models, None));
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                let app = Arc::new(App {
                    handle: engine.handle(),
                    settings: Arc::new(options.settings),
                    auth: Auth::new(options.keys, options.admin),
                    limits: options.limits.clone(),
                    policies: options.policies,
                    connections: open.clone(),
                    ids: Mutex::new(Pcg64::new(1, 2)),
                    drain: for_app,
                    pool,
                    store,
                    spans: options.spans,
                });
                sender.send((listener.local_addr().unwrap(), engine.handle())).unwrap();
                let tls = options.tls.map(|files| files.load().unwrap());
                Server { app, tls }.run(listener, draining).await;
            });
        });
        let (address, handle) = receiver.recv().expect("the server starts");
        Self { address, handle, connections, drain, thread: Some(thread) }
    }

    /// Begins to drain.
    pub fn drain(&self) {
        self.handle.drain();
        self.drain.send_replace(true);
    }

    /// Opens a connection.
    pub fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).unwrap()
    }

    /// Posts a body on a new connection.
    pub fn post(&self, path: &str, body: impl AsRef<[u8]>) -> Reply {
        self.post_with(path, "", body)
    }

    /// As `post`, with more header lines, each ended by CRLF.
    pub fn post_with(&self, path: &str, headers: &str, body: impl AsRef<[u8]>) -> Reply {
        let mut stream = self.connect();
        stream.write_all(&post(path, headers, body)).unwrap();
        Reply::read(&mut BufReader::new(stream)).expect("the server answers")
    }

    /// Gets a page on a new connection.
    pub fn get(&self, path: &str, headers: &str) -> Reply {
        let mut stream = self.connect();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n").as_bytes()).unwrap();
        Reply::read(&mut BufReader::new(stream)).expect("the server answers")
    }

    /// Waits until no request is inside.
    pub fn settle(&self) {
        while self.handle.inside() > 0 {
            std::thread::yield_now();
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.drain();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the server panicked");
    }
}

/// A request's bytes.
pub fn post(path: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// A parsed answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    /// Reads an answer; none if the connection ended before it.
    pub fn read(stream: &mut impl BufRead) -> Option<Self> {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let status = line.split(' ').nth(1)?.parse().ok()?;
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).ok()?;
            match line.trim_end().split_once(": ") {
                Some((name, value)) => headers.push((name.to_lowercase(), value.to_owned())),
                None => break,
            }
        }
        let mut reply = Self { status, headers, body: Vec::new() };
        let length = reply.header("content-length").map_or(0, |length| length.parse().unwrap());
        reply.body.resize(length, 0);
        stream.read_exact(&mut reply.body).ok()?;
        Some(reply)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A model with random values, large enough that every part affects the logits.
pub fn random_plan(mut plan: Plan, seed: u64) -> Plan {
    let mut random = Pcg64::new(seed.into(), 3);
    let tables = 1 + usize::from(plan.embed.positions.is_some()) + usize::from(plan.embed.types.is_some());
    for (place, tensor) in plan.tensors_mut().into_iter().enumerate() {
        let (mean, scale) = match tensor.shape[..] {
            [_, inputs] if place >= tables => (0.0, 2.0 / (inputs as f32).sqrt()),
            [_] if !tensor.name.ends_with(".bias") => (1.0, 0.2),
            _ => (0.0, 0.1),
        };
        let value = |_| mean + (random.random::<f32>() * 2.0 - 1.0) * scale;
        tensor.values = (0..tensor.count()).map(value).collect();
    }
    plan
}

/// A BERT encoder of this shape.
pub fn bert(layers: usize, hidden: usize, heads: usize, intermediate: usize) -> Bert {
    Bert {
        family: Family::Bert,
        hidden,
        layers,
        heads,
        intermediate,
        vocabulary: 30_522,
        positions: 512,
        position_offset: 0,
        token_types: 2,
        layer_norm_eps: 1e-12,
        activation: Activation::Gelu(Gelu::Erf),
    }
}

/// The kinds of layers and heads that models other than BERT have, on widths that are no multiple of a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Layers that norm their input, windows, gates; the first token or the mean through a dense map and a norm.
    ModernBert(Pool),
    /// Layers that norm their input by its root mean square, causal, with norms of queries and of fewer keys; the last
    /// token's state against two tokens.
    Qwen3,
    /// Layers that norm their output, rotary positions and gates.
    Gte,
    /// Layers that norm their output, relative positions by maps of their own in every second layer.
    Deberta,
}

impl Kind {
    pub const ALL: [Self; 5] =
        [Self::ModernBert(Pool::First), Self::ModernBert(Pool::Mean), Self::Qwen3, Self::Gte, Self::Deberta];

    /// Those that the GPU engine runs.
    pub fn on_gpu() -> Vec<Self> {
        Self::ALL.into_iter().filter(|kind| *kind != Self::Deberta).collect()
    }

    /// A model of this kind, without values.
    pub fn plan(self, layers: usize, [hidden, heads, head_dim, inner]: [usize; 4]) -> Plan {
        let (is_qwen, is_deberta) = (self == Self::Qwen3, self == Self::Deberta);
        let is_post_norm = self == Self::Gte || is_deberta;
        let norm = |name: &str, width: usize| match self {
            Self::Qwen3 => Norm::unbiased(NormKind::Rms, name, width, 1e-6),
            Self::ModernBert(_) => Norm::unbiased(NormKind::Layer, name, width, 1e-5),
            Self::Gte | Self::Deberta => Norm::layer(name, width, 1e-12),
        };
        let map = |name: &str, outputs: usize, inputs: usize| match self {
            Self::Gte | Self::Deberta => Linear::new(name, outputs, inputs),
            Self::Qwen3 | Self::ModernBert(_) => Linear::unbiased(name, outputs, inputs),
        };
        let kv_heads = if is_qwen { heads / 2 } else { heads };
        let block = |layer: usize| Block {
            norms: if is_post_norm { Norms::Post } else { Norms::Pre },
            attention_norm: (is_post_norm || is_qwen || layer > 0).then(|| norm("attention_norm", hidden)),
            attention: Attention {
                heads,
                kv_heads,
                head_dim,
                query: map("query", heads * head_dim, hidden),
                key: map("key", kv_heads * head_dim, hidden),
                value: map("value", kv_heads * head_dim, hidden),
                out: map("out", hidden, heads * head_dim),
                query_key_norms: is_qwen.then(|| [norm("query_norm", head_dim), norm("key_norm", head_dim)]),
                rope: (!is_deberta).then(|| Rope::new(if layer.is_multiple_of(3) { 1e5 } else { 100.0 })),
                reach: match self {
                    Self::Qwen3 => Reach::Causal,
                    Self::ModernBert(_) if !layer.is_multiple_of(3) => Reach::Window(9),
                    Self::ModernBert(_) | Self::Gte | Self::Deberta => Reach::All,
                },
                relative: is_deberta.then(|| RelativeMaps {
                    own: (layer % 2 == 1).then(|| {
                        ["relative_query", "relative_key"].map(|name| map(name, heads * head_dim, hidden))
                    }),
                }),
            },
            feed_forward_norm: norm("feed_forward_norm", hidden),
            feed_forward: FeedForward {
                activation: if is_qwen { Activation::Silu } else { Activation::Gelu(Gelu::Erf) },
                gate: (!is_deberta).then(|| map("gate", inner, hidden)),
                up: map("up", inner, hidden),
                down: map("down", hidden, inner),
            },
        };
        let row = |name: &str| Tensor::new(name.to_owned(), &[1, hidden]);
        Plan {
            family: "kind",
            embed: Embed {
                words: Tensor::new("words".to_owned(), &[30_522, hidden]),
                positions: None,
                types: None,
                norm: (!is_qwen).then(|| norm("embedding_norm", hidden)),
            },
            // Of mxbai-rerank-v1, but distances from 256 on, which a pair may have, share a row.
            relative: is_deberta.then(|| Relative {
                table: Tensor::new("distances".to_owned(), &[256, hidden]),
                norm: Some(norm("distances_norm", hidden)),
                buckets: 128,
                distance_max: 256,
            }),
            blocks: (0..layers).map(block).collect(),
            final_norm: (!is_post_norm).then(|| norm("final_norm", hidden)),
            head: match self {
                Self::ModernBert(at) => Head {
                    at,
                    dense: Some((map("dense", hidden, hidden), Activation::Gelu(Gelu::Erf))),
                    norm: Some(norm("head_norm", hidden)),
                    score: Score::Linear(Linear::new("classifier", 1, hidden)),
                },
                Self::Qwen3 => Head {
                    at: Pool::Last,
                    dense: None,
                    norm: None,
                    score: Score::Tokens { yes: row("yes"), no: Some(row("no")) },
                },
                Self::Gte | Self::Deberta => Head {
                    at: Pool::First,
                    dense: Some((map("dense", hidden, hidden), Activation::Tanh)),
                    norm: None,
                    score: Score::Linear(Linear::new("classifier", 1, hidden)),
                },
            },
            tokens_max: 512,
            unused: Vec::new(),
        }
    }
}

/// A batch of random tokens with these lengths.
pub fn random_batch(lengths: &[usize], seed: u64) -> Packed {
    let mut random = Pcg64::new(seed.into(), 4);
    let mut batch = Packed::default();
    for &length in lengths {
        batch.push((0..length).map(|place| (random.random_range(1000..30_000), u8::from(place >= 10))));
    }
    batch
}

/// The models of `tests/fixtures/encoders` that have one logit.
pub const FIXTURES: [&str; 18] = [
    "bert",
    "bert_tanh",
    "bert_f16",
    "bert_gamma",
    "roberta",
    "xlm_roberta",
    "modernbert_cls",
    "modernbert_mean",
    "modernbert_biases",
    "ettin",
    "new",
    "new_ntk",
    "qwen3",
    "qwen3_untied",
    "qwen3_classifier",
    "qwen2",
    "deberta_v2",
    "deberta_v2_far",
];

/// Those of BERT's families, one of each.
pub const FAMILIES: [&str; 4] = ["bert", "bert_tanh", "roberta", "xlm_roberta"];

/// A small random model of `tests/fixtures/encoders`, with sequences and the logits that Python's `transformers` gives them.
pub fn fixture(name: &'static str) -> (&'static str, Plan, Packed, Vec<f32>) {
    #[derive(serde::Deserialize)]
    struct Case {
        ids: Vec<u32>,
        types: Vec<u8>,
        logit: f32,
    }
    let place = root().join("tests/fixtures/encoders").join(name);
    let file = |name: &str| std::fs::read(place.join(name)).unwrap();
    let plan = Plan::open(&place).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&file("cases.json")).unwrap();
    let mut batch = Packed::default();
    cases.iter().for_each(|case| batch.push(case.ids.iter().copied().zip(case.types.iter().copied())));
    (name, plan, batch, cases.iter().map(|case| case.logit).collect())
}

/// Runs the program with arguments.
pub fn podium(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podium"));
    command.args(arguments).env_remove("PODIUM_PRIMARY").env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

/// A server in its own process.
pub struct Serving {
    pub child: Child,
    pub address: String,
    log: Arc<Mutex<Vec<String>>>,
}

impl Serving {
    pub fn start(arguments: &[&str]) -> Self {
        Self::of(podium(&[&["serve", "--listen", "127.0.0.1:0"], arguments].concat()))
    }

    /// The same, started by another command that takes this one as its arguments.
    pub fn start_by(mut starter: Command, arguments: &[&str]) -> Self {
        let serve = podium(&[&["serve", "--listen", "127.0.0.1:0"], arguments].concat());
        starter.arg(serve.get_program()).args(serve.get_args()).stdin(Stdio::null()).stdout(Stdio::null());
        starter.env_remove("PODIUM_PRIMARY").env("NO_COLOR", "1");
        Self::of(starter)
    }

    fn of(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut address = String::new();
        for line in lines.by_ref() {
            let line = line.unwrap();
            if let Some((_, found)) = line.split_once("listening on http://") {
                address = found.trim().to_owned();
            }
            if line.contains("ready") {
                break;
            }
        }
        // Drains the log, so that the pipe does not fill up.
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = log.clone();
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| kept.lock().unwrap().push(line));
        });
        Self { child, address, log }
    }

    /// The number of log lines since it was ready that contain a text.
    pub fn logged(&self, text: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.contains(text)).count()
    }

    pub fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).unwrap()
    }

    pub fn send(&self, request: &[u8]) -> Reply {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        Reply::read(&mut BufReader::new(stream)).expect("the server answers")
    }

    pub fn rank(&self) -> Reply {
        let reply = self.send(&post("/v1/rank", "", r#"{"query": "ab", "documents": ["abc", "x y z"]}"#));
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
