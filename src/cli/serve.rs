//! `podium serve`: starts a server from its configuration, and ends it.

use super::config::Config;
use super::follow::Follower;
use super::routes::RepositoryMode;
use super::shelf::Shelf;
use super::tier::TierConfig;
use super::{Failure, files, pool};
use crate::backend::Precision;
use crate::base::TenantId;
use crate::deployments::Deployments;
use crate::engine::{BooksSetup, Clock, Engine, ModelPool, Setup};
use crate::http::{App, Auth, Connections, Policies, Server, listen};
use crate::ledger::price::PriceBook;
use crate::telemetry::spans::Spans;
use rand_pcg::Pcg64;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::{ErrorKind, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Threads for connections: they parse and encode, and leave the other cores to the lanes.
const IO_THREADS_MAX: usize = 4;

/// Serves a model over HTTP in every dialect, with a small model as its fallback.
///
/// Without arguments it serves the small model that is part of the program. With --primary the
/// small model becomes the fallback.
///
/// Flags win over environment variables (PODIUM_*), and those win over podium.toml, whose keys
/// are in deploy/podium.toml.
///
///     podium serve --primary ./my-cross-encoder --latency-budget-ms 200
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Args {
    /// The large model: a directory in Hugging Face layout, a hub id (owner/name[@revision]), or `bundled` [default:
    /// bundled].
    #[arg(long, env = "PODIUM_PRIMARY", value_name = "DIR_OR_HUB_ID")]
    primary: Option<String>,
    /// The small model that answers if the primary cannot within a request's budget; `none` disables it [default:
    /// bundled].
    #[arg(long, env = "PODIUM_FALLBACK", value_name = "DIR_OR_HUB_ID")]
    fallback: Option<String>,
    /// A folder of models, each with versions (NAME/VERSION/...), instead of --primary and --fallback.
    #[arg(long, env = "PODIUM_MODEL_REPOSITORY", value_name = "DIR")]
    model_repository: Option<PathBuf>,
    /// How the server follows its repository: none (it is read once), poll, or explicit (models are loaded on request)
    /// [default: none].
    #[arg(long, env = "PODIUM_REPOSITORY_MODE", value_name = "MODE", hide_possible_values = true)]
    repository_mode: Option<RepositoryMode>,
    /// The SQLite file that records which versions are live on which route, for `podium models history`.
    #[arg(long, env = "PODIUM_DEPLOYMENTS", value_name = "FILE")]
    deployments: Option<PathBuf>,
    /// The precision of the models: auto (int8 if it is faster and keeps a sample's order, else float), float (f16 on a GPU;
    /// else bf16 if measured faster than f32), f32, f16 or fp8 (on a GPU, only the primary), bf16 or int8.
    #[arg(long, env = "PODIUM_PRECISION", value_name = "PRECISION", value_parser = super::precision)]
    precision: Option<Precision>,
    /// Pins the lanes on the CPU to physical cores: `pin` of both tiers.
    #[arg(long, env = "PODIUM_PIN", value_parser = clap::builder::BoolishValueParser::new())]
    pin: bool,
    /// The address to listen on; a host name stands for all of its addresses. Repeat the flag for several [default:
    /// 127.0.0.1:8080].
    #[arg(long, env = "PODIUM_LISTEN", value_name = "HOST:PORT", value_delimiter = ',')]
    listen: Vec<String>,
    /// The latency budget of requests without their own, in milliseconds.
    #[arg(long, env = "PODIUM_LATENCY_BUDGET_MS", value_name = "MS", allow_negative_numbers = true)]
    latency_budget_ms: Option<f64>,
    /// The SQLite file that records usage by tenant, for `podium costs`; created if it does not exist.
    #[arg(long, env = "PODIUM_LEDGER", value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// A new file that records the scheduler's decisions, for `podium simulate --replay`.
    #[arg(long, env = "PODIUM_JOURNAL", value_name = "FILE")]
    journal: Option<PathBuf>,
    /// The key for /admin/* and /v1/costs. Better set PODIUM_ADMIN_KEY: other users can see command lines.
    #[arg(long, env = "PODIUM_ADMIN_KEY", value_name = "KEY", hide_env_values = true)]
    admin_key: Option<String>,
    /// The configuration file [default: podium.toml, if there is one].
    #[arg(long, env = "PODIUM_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The log filter, for example `info` or `podium=debug,info`.
    #[arg(long, env = "PODIUM_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
    /// Logs JSON lines.
    #[arg(long, env = "PODIUM_LOG_JSON", value_parser = clap::builder::BoolishValueParser::new())]
    log_json: bool,
    /// Serves a model without scoring its golden pairs (`golden.json`) first; the file is not read.
    #[arg(long)]
    no_self_check: bool,
    /// Only validates the configuration and the models, scores their golden pairs as a start does, and prints the setup.
    #[arg(long)]
    check: bool,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    init_log(&args.log, args.log_json)?;
    let (check, config) = (args.check, merge(args)?);
    config.check()?;
    let shelf = config.has_routes().then(|| Shelf::new(&config)).transpose()?;
    let config = shelf.as_ref().map_or(config, |shelf| shelf.config().clone());
    let addresses = config.addresses()?;
    let tls = config.tls.as_ref().map(|files| files.load()).transpose();
    let tls = tls.map_err(|message| Failure::usage(format!("tls: {message}")))?;
    let clock = Clock::start();
    let prices = PriceBook::new(&config.prices).map_err(|error| Failure::usage(error.to_string()))?;
    let books = BooksSetup { prices, ..BooksSetup::default() };
    let (mut setup, pool) = match shelf {
        None => (pool::setup(&config, clock, books)?, None),
        Some(shelf) => shelf.setup(clock, books, check).map(|(setup, pool)| (setup, Some(pool)))?,
    };
    if check {
        files::check(&config)?;
        let mut described = Vec::new();
        describe(&config, &addresses, &setup, &mut described).expect("a vector takes all");
        pool::check_golden(&config, setup)?;
        return super::printed(std::io::stdout().lock().write_all(&described));
    }
    files::open_books(&config, &mut setup.books)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(IO_THREADS_MAX);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(|error| Failure::unavailable(format!("threads: {error}")))?;
    let spans = config.otlp.as_ref().map(|otlp| Spans::start(otlp, runtime.handle())).transpose();
    let spans = spans.map_err(|message| Failure::usage(format!("otlp.{message}")))?.map(Arc::new);
    // Each connection needs a file descriptor; the hard limit is the administrator's.
    if let Err(error) = rlimit::increase_nofile_limit(config.http.connections_max as u64 + 256) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
    let result = runtime.block_on(serve((&config, addresses.as_slice()), (setup, pool), tls, spans.clone()));
    if let Some(spans) = spans {
        spans.shutdown();
    }
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn init_log(filter: &str, json: bool) -> Result<(), Failure> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .map_err(|error| Failure::usage(format!("--log: {error}")))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let log = log.with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    if json {
        log.json().init()
    } else {
        log.init()
    }
    Ok(())
}

fn merge(args: Args) -> Result<Config, Failure> {
    let mut config = Config::read(args.config.as_deref())?;
    let tier = |slot: &mut Option<TierConfig>, model: Option<String>| {
        if let Some(model) = model {
            match slot {
                Some(tier) => tier.model = model,
                None => *slot = Some(TierConfig::new(model)),
            }
        }
    };
    config.model_repository = args.model_repository.or(config.model_repository);
    config.repository_mode = args.repository_mode.unwrap_or(config.repository_mode);
    config.deployments = args.deployments.or(config.deployments);
    tier(&mut config.primary, args.primary);
    tier(&mut config.fallback, args.fallback);
    config.complete();
    if config.has_routes() && (args.precision.is_some() || args.pin) {
        let flag = if args.pin { "--pin" } else { "--precision" };
        return Err(Failure::usage(format!("{flag}: set it by model in [[models]] where there are routes")));
    }
    if let Some(precision) = args.precision {
        // A fallback runs on the CPU.
        let fallback = config.fallback.as_mut().filter(|_| !precision.is_for_gpus());
        let tiers = config.primary.as_mut().into_iter().chain(fallback);
        tiers.for_each(|tier| tier.precision = precision);
    }
    for tier in config.primary.iter_mut().chain(&mut config.fallback) {
        tier.pin |= args.pin;
    }
    if !args.listen.is_empty() {
        // A wrong key is told although the flag replaces it.
        config.check_listen()?;
        config.listen = args.listen;
    }
    config.self_check &= !args.no_self_check;
    config.ledger = args.ledger.or(config.ledger);
    config.journal = args.journal.or(config.journal);
    config.latency_budget_ms = args.latency_budget_ms.or(config.latency_budget_ms);
    config.admin_key = args.admin_key.or(config.admin_key);
    Ok(config)
}

/// Prints the setup.
fn describe(
    config: &Config,
    addresses: &[(SocketAddr, &str)],
    setup: &Setup,
    mut out: impl Write,
) -> std::io::Result<()> {
    for model in &setup.models {
        writeln!(
            out,
            "{:<9} {} version {} licence {}; {} lane(s) of {} tokens, {} on {}; reads {} tokens a pair",
            model.tier.name(),
            model.name,
            model.version,
            model.licence,
            model.lanes.len(),
            model.lanes[0].batch_tokens_max,
            model.dtype,
            model.device,
            model.pair_tokens_max,
        )?;
    }
    let names: Vec<&str> = setup.tenants.iter().map(|(name, _)| &**name).collect();
    writeln!(out, "tenants   {}", names.join(", "))?;
    let budget = config.latency_budget_ms.map_or("none".to_owned(), |budget| format!("{budget} ms"));
    writeln!(out, "budget    {budget} where a request brings none")?;
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    for (address, _) in addresses {
        writeln!(out, "listen    {scheme}://{address}")?;
    }
    Ok(())
}

async fn serve(
    (config, addresses): (&Config, &[(SocketAddr, &str)]),
    (setup, pool): (Setup, Option<(Shelf, Option<Deployments>)>),
    tls: Option<tokio_rustls::TlsAcceptor>,
    spans: Option<Arc<Spans>>,
) -> Result<(), Failure> {
    let listeners = listeners(addresses)?;
    let (store, clock) = (setup.books.store.clone(), setup.clock);
    let mut engine = Engine::start(setup).map_err(|error| Failure::usage(error.to_string()))?;
    let handle = engine.handle();
    let pool = pool.map(|(shelf, deployments)| {
        let follower = Follower::new(config, &shelf, clock);
        (ModelPool::start(handle.clone(), Box::new(shelf), deployments), follower)
    });
    let models = pool.as_ref().map(|(pool, _)| pool.clone());
    let (drain, draining) = watch::channel(false);
    let app = Arc::new(App {
        handle: handle.clone(),
        settings: Arc::new(config.wire.clone()),
        auth: auth(config),
        limits: config.http.clone(),
        policies: Policies {
            server: config.default_policy,
            paths: config.path_policies.clone().into_iter().collect(),
            tenants: config.tenants.iter().map(|tenant| tenant.default_policy).collect(),
        },
        connections: Arc::new(Connections::default()),
        // Seeded by the system: ids must be distinct, not secret.
        ids: Mutex::new(Pcg64::new(seed(), seed())),
        drain: drain.clone(),
        pool: models.clone(),
        store,
        spans,
    });
    let mut servers = JoinSet::new();
    let scheme = if tls.is_some() { "https" } else { "http" };
    for listener in listeners {
        let address = listener.local_addr().map_err(|error| Failure::unavailable(error.to_string()))?;
        tracing::info!("listening on {scheme}://{address}");
        let server = Server { app: app.clone(), tls: tls.clone() };
        servers.spawn(server.run(listener, draining.clone()));
    }
    let result = until_the_end(&mut engine, pool, draining).await;
    handle.drain();
    drain.send_replace(true);
    tracing::info!(inside = handle.inside(), "draining");
    while servers.join_next().await.is_some() {}
    tracing::info!("drained");
    result
}

/// Listens on every address. One of a name's addresses may be of a kind that this machine lacks, IPv6 for example: it
/// is left out where the name has another. A port that is taken is an error.
fn listeners(addresses: &[(SocketAddr, &str)]) -> Result<Vec<TcpListener>, Failure> {
    let mut listeners = Vec::new();
    for &(address, entry) in addresses {
        let has_others = addresses.iter().any(|&(other, of)| of == entry && other != address);
        match listen(address) {
            Ok(listener) => listeners.push(listener),
            Err(error) if has_others && !is_taken(&error) => {
                tracing::warn!(%address, listen = entry, %error, "this machine has no such address");
            }
            Err(error) => return Err(Failure::unavailable(format!("listen: {address}: {error}"))),
        }
    }
    match listeners.is_empty() {
        true => Err(Failure::unavailable("listen: this machine has none of the addresses")),
        false => Ok(listeners),
    }
}

/// Whether an address is there and not ours to have.
fn is_taken(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::PermissionDenied)
}

/// Waits for a signal, a drain by the admin, or a failure.
async fn until_the_end(
    engine: &mut Engine,
    pool: Option<(ModelPool, Option<Follower>)>,
    mut draining: watch::Receiver<bool>,
) -> Result<(), Failure> {
    let handler = |kind| signal(kind).map_err(|error| Failure::unavailable(format!("signals: {error}")));
    let (mut terminate, mut interrupt) =
        (handler(SignalKind::terminate())?, handler(SignalKind::interrupt())?);
    // A terminal that closes ends the server as well as a signal does; `nohup` is the user's word that it must not.
    let mut hang_up = if ignores_hang_up() { None } else { Some(handler(SignalKind::hangup())?) };
    let mut stop = pin!(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            Some(()) = hung_up(hang_up.as_mut()) => {}
            _ = draining.wait_for(|&draining| draining) => {}
        }
    });
    tokio::select! {
        ready = engine.ready() => ready.map_err(Failure::not_ready)?,
        () = &mut stop => return Ok(()),
    }
    let handle = engine.handle();
    for model in &*handle.models() {
        let (name, tier, dtype, reason) =
            (&*model.name, model.tier.name(), model.dtype, &*model.dtype_reason);
        tracing::info!(name, tier, dtype, reason, "model");
    }
    let models: Vec<_> = handle.models().iter().map(|model| model.name.clone()).collect();
    tracing::info!(?models, "ready");
    let following = async {
        match pool {
            Some((pool, follower)) => {
                pool.ready().await;
                match follower {
                    Some(follower) => follower.run(pool).await,
                    None => std::future::pending().await,
                }
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = following => Err(Failure::internal("the model pool has ended; the reason is in the log above")),
        () = engine.ended() => Err(Failure::internal("the scheduler panicked; the panic is in the log above")),
        () = stop => Ok(()),
    }
}

/// Never, where the signal is ignored.
async fn hung_up(signal: Option<&mut Signal>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => std::future::pending().await,
    }
}

/// Whether this process was started with SIGHUP ignored, as `nohup` does; Linux tells.
fn ignores_hang_up() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // SIGHUP is signal 1, and so the lowest bit.
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

fn auth(config: &Config) -> Auth {
    let keys = config
        .tenants
        .iter()
        .zip(0..)
        .flat_map(|(tenant, number)| tenant.keys.iter().map(move |key| (key.as_str(), TenantId(number))));
    Auth::new(keys, config.admin_key.as_deref())
}

fn seed() -> u128 {
    u128::from(RandomState::new().hash_one("podium"))
}
