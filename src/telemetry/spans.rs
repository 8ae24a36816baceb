//! Exports requests as OpenTelemetry spans by OTLP over HTTP (binary protobuf). A separate thread sends them in
//! batches. If the collector is slow or down, spans are dropped and requests are not delayed.

use super::trace::TraceContext;
use crate::base::{Nanodollars, Ns};
use crate::rerank::Receipt;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanProcessor};
use serde::Deserialize;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use tokio::runtime::Handle;

/// The longest time that a batch of spans may take to be sent.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// The exporter's configuration.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtlpConfig {
    /// The collector's address, `http://host:port` (plain HTTP); `/v1/traces` is appended.
    pub endpoint: String,
    /// The share of traces begun here that are recorded. A caller's trace is recorded if its `traceparent` says so.
    /// Default 1.
    #[serde(default = "all")]
    pub sample: f64,
}

fn all() -> f64 {
    1.0
}

impl OtlpConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// A message that names the key.
    pub fn check(&self) -> Result<(), String> {
        if !self.endpoint.starts_with("http://") {
            return Err(format!("endpoint: `{}` does not begin with http://", self.endpoint));
        }
        if !(0.0..=1.0).contains(&self.sample) {
            return Err(format!("sample: {} is not between 0 and 1", self.sample));
        }
        Ok(())
    }
}

/// A client that may be used outside the runtime that it needs: the exporter's thread has none.
#[derive(Debug)]
struct OnRuntime {
    client: HyperClient,
    runtime: Handle,
}

#[async_trait::async_trait]
impl HttpClient for OnRuntime {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        self.runtime.spawn(async move { client.send_bytes(request).await }).await?
    }
}

/// Exports spans.
#[derive(Debug)]
pub struct Spans {
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
    sample: f64,
}

/// The attributes of a request's span.
#[derive(Clone, Debug)]
pub struct SpanFacts {
    /// The dialect of the request.
    pub dialect: &'static str,
    /// The tenant, if it is known.
    pub tenant: Option<Arc<str>>,
    /// The receipt, or the error's code.
    pub outcome: Result<(Receipt, usize), &'static str>,
}

impl Spans {
    /// Starts the exporter's thread. `runtime` does its input and output, and must run until [`Spans::shutdown`] returns.
    ///
    /// # Errors
    /// The reason if the endpoint cannot be used.
    pub fn start(config: &OtlpConfig, runtime: &Handle) -> Result<Self, String> {
        let client = HyperClient::with_default_connector(SEND_TIMEOUT, None);
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", config.endpoint.trim_end_matches('/')))
            .with_timeout(SEND_TIMEOUT)
            .with_http_client(OnRuntime { client, runtime: runtime.clone() })
            .build()
            .map_err(|error| format!("endpoint: {error}"))?;
        let mut processor = BatchSpanProcessor::builder(exporter).build();
        processor.set_resource(&Resource::builder().with_service_name("podium").build());
        let scope = InstrumentationScope::builder("podium").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok(Self { processor, scope, sample: config.sample })
    }

    /// The share of traces begun here that are recorded.
    pub fn sample(&self) -> f64 {
        self.sample
    }

    /// Records a request that arrived at `unix_ns` (nanoseconds since 1970) and was answered after `elapsed`. Its queue
    /// and compute times are child spans.
    pub fn record(&self, trace: &TraceContext, unix_ns: u64, elapsed: Ns, facts: &SpanFacts) {
        let mut attributes = vec![KeyValue::new("podium.dialect", facts.dialect)];
        attributes.extend(facts.tenant.as_ref().map(|tenant| KeyValue::new("podium.tenant", tenant.clone())));
        let (mut status, mut parts) = (Status::Ok, Vec::new());
        match &facts.outcome {
            Ok((receipt, documents)) => {
                attributes.extend([
                    KeyValue::new("podium.documents", *documents as i64),
                    KeyValue::new("podium.tier", receipt.served.name()),
                    KeyValue::new("podium.model", receipt.model.clone()),
                    KeyValue::new("podium.version", receipt.version.clone()),
                    KeyValue::new("podium.device_ns", receipt.device.0 as i64),
                ]);
                let cost = |cost: Nanodollars| KeyValue::new("podium.cost_nanodollars", cost.0 as i64);
                attributes.extend(receipt.cost.map(cost));
                let degraded = receipt.degraded.map(|why| KeyValue::new("podium.degraded", why.name()));
                attributes.extend(degraded);
                parts = vec![("queue", Ns::ZERO, receipt.queue), ("compute", receipt.queue, receipt.compute)];
            }
            Err(code) => {
                attributes.push(KeyValue::new("podium.error", *code));
                status = Status::error(*code);
            }
        }
        let span = |id: u64, parent: u64, name: &'static str, (start, took): (Ns, Ns)| {
            let start_time = UNIX_EPOCH + Duration::from_nanos(unix_ns) + Duration::from(start);
            SpanData {
                span_context: SpanContext::new(
                    TraceId::from(trace.trace),
                    SpanId::from(id),
                    TraceFlags::SAMPLED,
                    false,
                    TraceState::NONE,
                ),
                parent_span_id: SpanId::from(parent),
                parent_span_is_remote: id == trace.span && trace.parent.is_some(),
                span_kind: if id == trace.span { SpanKind::Server } else { SpanKind::Internal },
                name: name.into(),
                start_time,
                end_time: start_time + Duration::from(took),
                attributes: Vec::new(),
                dropped_attributes_count: 0,
                events: Default::default(),
                links: Default::default(),
                status: Status::Ok,
                instrumentation_scope: self.scope.clone(),
            }
        };
        for (place, (name, start, took)) in (1..).zip(parts) {
            // Derives the child spans' ids from the request's, so that no more randomness is needed. Zero would be
            // invalid.
            let id = (trace.span ^ place).max(1);
            self.processor.on_end(span(id, trace.span, name, (start, took)));
        }
        let whole = span(trace.span, trace.parent.unwrap_or(0), "rank", (Ns::ZERO, elapsed));
        self.processor.on_end(SpanData { attributes, status, ..whole });
    }

    /// Sends the remaining spans; called when the server ends.
    pub fn shutdown(&self) {
        if let Err(error) = self.processor.shutdown_with_timeout(SEND_TIMEOUT) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}
