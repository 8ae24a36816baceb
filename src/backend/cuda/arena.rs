//! The activation buffers of a forward.

use super::stack::{Absorbed, Inner, Last, Reading, Stack};
use crate::ops::PAD;
use crate::ops::cuda::{Array, Bucket, Device, DeviceError, Linear, Quantised};

/// Values of rows, with padding: the most of any layer. 0 for a buffer that a model does not need.
#[derive(Clone, Copy, Default)]
pub(super) struct Sizes {
    /// Of states.
    pub hidden: usize,
    /// Of normed states.
    normed: usize,
    /// Of queries, keys and values.
    qkv: usize,
    /// Of contexts.
    context: usize,
    /// Of inner activations.
    inner: usize,
    /// Of inner activations and their gate.
    both: usize,
    /// Of the absorbed queries of all heads.
    absorbed: usize,
    /// Of what lies between the two steps of a head, in f32.
    head: usize,
}

/// The activation buffers, sized for the largest bucket and allocated once.
pub(super) struct Arena<D: Device> {
    /// `[tokens, hidden]`.
    pub states: Array<D>,
    /// `[tokens, hidden]`.
    normed: Option<Array<D>>,
    /// `[tokens, qkv]`.
    pub qkv: Array<D>,
    /// `[tokens, context]`.
    pub context: Array<D>,
    /// `[tokens, hidden]`: the residual branch, added by a norm.
    pub update: Array<D>,
    /// `[tokens, inner]`.
    pub inner: Array<D>,
    /// `[tokens, both]`.
    both: Option<Array<D>>,
    /// Inputs of the maps that read E4M3.
    fp8: Option<Fp8Inputs<D>>,
    /// `[sequences, hidden]`: the states that the head reads.
    pub read: Array<D>,
    /// `[sequences, absorbed]` f32, and the same in the half type: absorbed queries, mixed states.
    absorbed: Option<[Array<D>; 2]>,
    /// `[sequences, head]` f32.
    head: Option<Array<D>>,
    /// `[sequences]` f32.
    pub logits: Array<D>,
}

/// States, contexts and inner activations in E4M3, shaped as in [`Arena`].
pub(super) struct Fp8Inputs<D: Device> {
    pub states: Array<D>,
    pub context: Array<D>,
    pub inner: Array<D>,
}

impl Sizes {
    /// The sizes of a model.
    pub fn of<D: Device>(stack: &Stack<D>) -> Self {
        let hidden = stack.embeddings.stride;
        let mut sizes = Self { hidden, ..Self::default() };
        let mut rests = Vec::new();
        for (mixer, rest) in &stack.layers {
            sizes.qkv = sizes.qkv.max(mixer.mixing.row());
            sizes.context = sizes.context.max(mixer.mixing.heads.width());
            if mixer.norm.is_some() {
                sizes.normed = hidden;
            }
            rests.push(rest);
        }
        if let Last::Absorbed(absorbed) = &stack.last {
            let Absorbed { mixing, rest, .. } = &**absorbed;
            sizes.qkv = sizes.qkv.max(mixing.row());
            sizes.context = sizes.context.max(mixing.heads.width());
            sizes.absorbed = mixing.heads.count * hidden;
            rests.push(rest);
        }
        for rest in rests {
            sizes.inner = sizes.inner.max(rest.width);
            if matches!(rest.activation, Inner::Gated(_)) {
                sizes.both = sizes.both.max(2 * rest.width);
            }
            if rest.is_pre() {
                sizes.normed = hidden;
            }
        }
        if stack.final_norm.is_some() {
            sizes.normed = hidden;
        }
        sizes.head = match &stack.head {
            Reading::Pooled(_) => hidden / PAD,
            Reading::Scoring(head) if head.dense.is_some() => hidden,
            Reading::Scoring(_) => 0,
        };
        sizes
    }
}

impl<D: Device> Arena<D> {
    /// Buffers for batches up to a bucket.
    pub fn new(device: &D, sizes: Sizes, is_fp8: bool, largest: Bucket) -> Result<Self, DeviceError> {
        let (tokens, sequences) = (largest.tokens as usize, largest.sequences as usize);
        let Sizes { hidden, normed, qkv, context, inner, both, absorbed, head } = sizes;
        let array = |bytes: usize| Array::new(device, bytes);
        let optional = |bytes: usize| (bytes > 0).then(|| array(bytes)).transpose();
        let fp8_inputs = || -> Result<_, DeviceError> {
            let [states, context, inner] = [hidden, context, inner].map(|width| array(tokens * width));
            Ok(Fp8Inputs { states: states?, context: context?, inner: inner? })
        };
        let absorbed_and_mixed = || -> Result<_, DeviceError> {
            Ok([array(4 * sequences * absorbed)?, array(2 * sequences * absorbed)?])
        };
        Ok(Self {
            states: array(2 * tokens * hidden)?,
            normed: optional(2 * tokens * normed)?,
            qkv: array(2 * tokens * qkv)?,
            context: array(2 * tokens * context)?,
            update: array(2 * tokens * hidden)?,
            inner: array(2 * tokens * inner)?,
            both: optional(2 * tokens * both)?,
            fp8: is_fp8.then(fp8_inputs).transpose()?,
            read: array(2 * sequences * hidden)?,
            absorbed: (absorbed > 0).then(absorbed_and_mixed).transpose()?,
            head: optional(4 * sequences * head)?,
            logits: array(4 * sequences)?,
        })
    }

    /// States as maps read them, where layers norm their input.
    pub fn normed(&self) -> &Array<D> {
        self.normed.as_ref().expect("a model with such a norm has room for its output")
    }

    /// Inner activations and before them their gate.
    pub fn both(&self) -> &Array<D> {
        self.both.as_ref().expect("a gated model has room for its gates")
    }

    /// Absorbed queries, and mixed states.
    pub fn absorbed(&self) -> [&Array<D>; 2] {
        self.absorbed.as_ref().expect("a model whose last layer is absorbed has room for it").each_ref()
    }

    /// What lies between the two steps of a head.
    pub fn head(&self) -> &Array<D> {
        self.head.as_ref().expect("a head of two steps has room between them")
    }

    /// The buffer that a map reads: its input in the half type or in E4M3.
    pub fn input<'a>(
        &'a self,
        map: &Linear<D>,
        halves: &'a Array<D>,
        select: impl Fn(&'a Fp8Inputs<D>) -> &'a Array<D>,
    ) -> &'a Array<D> {
        self.fp8.as_ref().filter(|_| map.scales.is_some()).map_or(halves, select)
    }

    /// The E4M3 output for a map's input, if the map reads E4M3.
    pub fn quantised<'a>(
        &'a self,
        map: Option<&'a Linear<D>>,
        select: impl Fn(&'a Fp8Inputs<D>) -> &'a Array<D>,
    ) -> Option<Quantised<'a, D>> {
        let factor = &map?.scales.as_ref()?.factor;
        Some(Quantised { to: select(self.fp8.as_ref()?), factor })
    }
}
