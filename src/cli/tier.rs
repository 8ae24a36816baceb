//! The configuration of a tier.

use super::Failure;
use super::cores::lanes_and_threads;
use crate::backend::Precision;
use crate::model::BUNDLED;
use serde::Deserialize;

/// A tier's model and its lanes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TierConfig {
    /// A directory in Hugging Face layout, a hub id, or `bundled`. Default `bundled`.
    #[serde(default = "bundled")]
    pub model: String,
    /// The name under which it is served. Default: that of its manifest.
    #[serde(default)]
    pub name: Option<String>,
    /// Most tokens of a pair that are read, special tokens included. Default: what the model's files say
    /// (`model_max_length`, `max_seq_length`), at most its positions.
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// The kind of device of the lanes, a name of `prices.devices`. Default: `gpu` on a GPU, else `cpu`. Tiers on one device give it the same name.
    #[serde(default)]
    pub device: Option<String>,
    /// The engine. Default `auto`.
    #[serde(default)]
    pub engine: EngineKind,
    /// The precision of its linear maps. Default `auto`: int8 on a CPU if it is measured to be faster and keeps the
    /// model's order, else `float`: f16 on a GPU, or bf16 if a score is not finite in f16; on a CPU bf16 if it is measured to
    /// be faster than f32, else f32.
    #[serde(default)]
    pub precision: Precision,
    /// Threads of each lane. Default: the lanes share the physical cores that the process and its container's quota may use,
    /// at most those of a NUMA node for each; at least one hardware thread is left for connections.
    #[serde(default)]
    pub threads: Option<usize>,
    /// Whether each lane on a CPU is pinned to physical cores of its own, as many as it has threads: a primary's lanes to the
    /// first cores, a fallback's to the last. Default false.
    #[serde(default)]
    pub pin: bool,
    /// Lanes: scorers with their own thread. Default: 1 on a CPU, or as many as its NUMA nodes need; one per GPU.
    #[serde(default)]
    pub lanes: Option<usize>,
    /// Most tokens of a batch. Default 4096, on a GPU 16384.
    #[serde(default)]
    pub batch_tokens_max: Option<u64>,
    /// Most batches that a lane holds at once. Default: 1 on a CPU, which has nothing to overlap; 2 on a GPU.
    pub depth: Option<usize>,
}

/// The engine of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum EngineKind {
    /// A primary runs on a GPU if the program has the feature `cuda` and there is one; everything else on the CPU.
    #[default]
    Auto,
    /// Fused operations on the CPU.
    Cpu,
    /// Fused operations on NVIDIA GPUs, in f16, bf16 or fp8; on the CPU, with a line in the log, if there is no usable
    /// GPU.
    Cuda,
    /// Candle in f32; slow.
    Reference,
}

fn bundled() -> String {
    BUNDLED.to_owned()
}

impl TierConfig {
    /// A tier with default settings.
    pub fn new(model: String) -> Self {
        Self {
            model,
            name: None,
            max_tokens: None,
            device: None,
            engine: EngineKind::Auto,
            precision: Precision::Auto,
            threads: None,
            pin: false,
            lanes: None,
            batch_tokens_max: None,
            depth: None,
        }
    }

    /// The lanes on a CPU, and the threads of each.
    pub fn lanes_and_threads(&self) -> (usize, usize) {
        lanes_and_threads(self.lanes, self.threads)
    }

    /// Checks the values of the table `key`; errors name the key.
    pub fn check(&self, key: &str) -> Result<(), Failure> {
        let wrong = |message: String| Err(Failure::usage(message));
        if self.name.as_ref().is_some_and(String::is_empty) {
            return wrong(format!("{key}.name: must not be empty"));
        }
        if let Some(lanes) = self.lanes.filter(|lanes| !(1..=256).contains(lanes)) {
            return wrong(format!("{key}.lanes: {lanes} is not between 1 and 256"));
        }
        if let Some(threads) = self.threads.filter(|threads| !(1..=256).contains(threads)) {
            return wrong(format!("{key}.threads: {threads} is not between 1 and 256"));
        }
        let precision = self.precision;
        if let Some(has) = match (self.engine, precision) {
            (_, Precision::Auto | Precision::Float) | (EngineKind::Auto, _) => None,
            (EngineKind::Reference, _) => (precision != Precision::F32).then_some("reference engine has f32"),
            (EngineKind::Cuda, _) => {
                precision.half().is_none().then_some("cuda engine has f16, bf16 and fp8")
            }
            (EngineKind::Cpu, _) => precision.is_for_gpus().then_some("cpu engine has f32, bf16 and int8"),
        } {
            return wrong(format!("{key}.precision: the {has} only"));
        }
        if self.engine == EngineKind::Cuda && !cfg!(feature = "cuda") {
            return wrong(format!("{key}.engine: this program was built without the feature cuda"));
        }
        if let Some(tokens) = self.batch_tokens_max.filter(|tokens| !(64..=1 << 24).contains(tokens)) {
            return wrong(format!("{key}.batch_tokens_max: {tokens} is not between 64 and 2^24"));
        }
        if let Some(depth) = self.depth.filter(|depth| !(1..=16).contains(depth)) {
            return wrong(format!("{key}.depth: {depth} is not between 1 and 16"));
        }
        Ok(())
    }
}
