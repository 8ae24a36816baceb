//! Operations of the student for which candle has no backward, or only a slow one that is composed of many passes. Each is a
//! custom operation on packed rows. Its test compares value and gradients with a composition of candle's operations.

use crate::ops::{ERF, ERF_P, EXP2, Kernel, Portable, Simd};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Tensor, bail};
use std::f32::consts::{FRAC_1_SQRT_2, LOG2_E};
use std::ops::Range;
use std::sync::Arc;

/// x + b for every row of `x: [rows, width]`.
pub(super) struct AddBias;

/// x Phi(x).
pub(super) struct Gelu;

/// Layer norm of every row of `x: [rows, width]` with gain and bias.
pub(super) struct LayerNorm {
    pub eps: f32,
}

/// softmax(Q K^T / sqrt(d)) V within each sequence, for packed `q: [queries, hidden]` and
/// `k, v: [tokens, hidden]`.
pub(super) struct Attention {
    pub heads: usize,
    /// The first query of each sequence, and at the end the number of queries: `[sequences + 1]`.
    pub queries: Arc<[usize]>,
    /// The same for tokens.
    pub tokens: Arc<[usize]>,
}

/// The values of a contiguous f32 tensor.
fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("a contiguous tensor is expected") };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// A copy of the values of a tensor.
fn copied(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

fn like(values: Vec<f32>, tensor: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, tensor.shape(), tensor.device())
}

/// Loops over slices that the compiler vectorises.
struct Loops<F>(F);

impl<T, F: FnOnce() -> T, S: Simd> Kernel<S> for Loops<F> {
    type Output = T;
    #[inline(always)]
    fn run(self, _: S) -> T {
        self.0()
    }
}

/// Runs loops as compiled for the present processor. The results are the same on all processors.
fn on_this_processor<T>(work: impl FnOnce() -> T) -> T {
    #[cfg(target_arch = "x86_64")]
    {
        use crate::ops::{Avx2, Avx512};
        if let Some(simd) = Avx512::detect() {
            return simd.launch(Loops(work));
        }
        if let Some(simd) = Avx2::detect() {
            return simd.launch(Loops(work));
        }
    }
    Portable::default().launch(Loops(work))
}

impl CustomOp2 for AddBias {
    fn name(&self) -> &'static str {
        "add-bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, b) = (values(x, xl)?, values(b, bl)?);
        let mut sum = x.to_vec();
        on_this_processor(|| sum.chunks_exact_mut(b.len()).for_each(|row| add(row, b)));
        Ok((CpuStorage::F32(sum), xl.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut sum = vec![0.0; b.elem_count()];
        let rows = copied(grad)?;
        on_this_processor(|| rows.chunks_exact(b.elem_count()).for_each(|row| add(&mut sum, row)));
        Ok((Some(grad.clone()), Some(like(sum, b)?)))
    }
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut values = values(x, layout)?.to_vec();
        on_this_processor(|| values.iter_mut().for_each(|x| *x *= phi(*x)));
        Ok((CpuStorage::F32(values), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        /// 1 / sqrt(2 pi).
        const DENSITY: f32 = 0.398_942_3;
        let (xs, mut slopes) = (copied(x)?, copied(grad)?);
        on_this_processor(|| {
            for (slope, &x) in slopes.iter_mut().zip(&xs) {
                *slope *= phi(x) + x * DENSITY * exp(-0.5 * x * x);
            }
        });
        Ok(Some(like(slopes, x)?))
    }
}

#[inline(always)]
fn polynomial(x: f32, least_first: &[f32]) -> f32 {
    least_first.iter().rev().fold(0.0, |sum, coefficient| sum * x + coefficient)
}

/// e^x within a relative error of 1e-5, for x from -86 to 88. Loops over it vectorise.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Adding it to a float puts the nearest integer into the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let x = (x * LOG2_E).clamp(-125.0, 127.0);
    let rounded = x + ROUND;
    let power = polynomial(x - (rounded - ROUND), &EXP2);
    f32::from_bits(power.to_bits().wrapping_add(rounded.to_bits() << 23))
}

/// The cumulative normal distribution, within 3e-7.
#[inline(always)]
fn phi(x: f32) -> f32 {
    let u = x.abs() * FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + ERF_P * u);
    let beyond = 0.5 * t * polynomial(t, &ERF) * exp(-u * u);
    if x < 0.0 { beyond } else { 1.0 - beyond }
}

impl LayerNorm {
    /// Mean and 1 / deviation of a row.
    #[inline(always)]
    fn moments(&self, row: &[f32]) -> (f32, f32) {
        let n = row.len() as f32;
        let mean = sum(row, row, |x, _| x) / n;
        let variance = sum(row, row, |x, _| (x - mean) * (x - mean)) / n;
        (mean, 1.0 / (variance + self.eps).sqrt())
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        gain: &CpuStorage,
        gl: &Layout,
        bias: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, gain, bias) = (values(x, xl)?, values(gain, gl)?, values(bias, bl)?);
        let mut normed = x.to_vec();
        on_this_processor(|| {
            for row in normed.chunks_exact_mut(gain.len()) {
                let (mean, inverse) = self.moments(row);
                for (x, (gain, bias)) in row.iter_mut().zip(gain.iter().zip(bias)) {
                    *x = (*x - mean) * inverse * gain + bias;
                }
            }
        });
        Ok((CpuStorage::F32(normed), xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gain: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (mut xs, gains, mut grads) = (copied(x)?, copied(gain)?, copied(grad)?);
        let width = gains.len();
        let (mut to_gain, mut to_bias) = (vec![0.0; width], vec![0.0; width]);
        on_this_processor(|| {
            for (row, grad) in xs.chunks_exact_mut(width).zip(grads.chunks_exact_mut(width)) {
                let (mean, inverse) = self.moments(row);
                row.iter_mut().for_each(|x| *x = (*x - mean) * inverse);
                add(&mut to_bias, grad);
                for ((to_gain, grad), (unit, gain)) in
                    to_gain.iter_mut().zip(&mut *grad).zip(row.iter().zip(&gains))
                {
                    *to_gain += *grad * unit;
                    *grad *= gain;
                }
                let n = width as f32;
                let average = sum(grad, grad, |grad, _| grad) / n;
                let along = dot(grad, row) / n;
                row.iter_mut().zip(&*grad).for_each(|(x, grad)| *x = inverse * (grad - average - *x * along));
            }
        });
        Ok((Some(like(xs, x)?), Some(like(to_gain, gain)?), Some(like(to_bias, bias)?)))
    }
}

/// The sum of a term over pairs of values, in 16 partial sums, because the compiler does not reorder float additions.
#[inline(always)]
fn sum(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0.0f32; 16];
    let ((a_whole, a_rest), (b_whole, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a_whole.iter().zip(b_whole) {
        for lane in 0..16 {
            sums[lane] += term(a[lane], b[lane]);
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(&a, &b)| term(a, b)).sum::<f32>()
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum(a, b, |a, b| a * b)
}

#[inline(always)]
fn add(to: &mut [f32], values: &[f32]) {
    to.iter_mut().zip(values).for_each(|(to, value)| *to += value);
}

impl Attention {
    /// Each sequence's queries and tokens.
    fn sequences(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        self.queries.windows(2).zip(self.tokens.windows(2)).map(|(q, t)| (q[0]..q[1], t[0]..t[1]))
    }

    /// The heads of some rows, `[heads, rows, size]`, as views.
    fn split(&self, of: &Tensor, rows: &Range<usize>) -> Result<Tensor> {
        of.narrow(0, rows.start, rows.len())?.reshape((rows.len(), self.heads, ()))?.transpose(0, 1)
    }

    /// softmax(Q K^T / sqrt(d)), `[heads, queries, tokens]`.
    fn weights(q: &Tensor, k: &Tensor) -> Result<Tensor> {
        let scale = scale(q)?;
        let scores = q.matmul(&k.t()?)?;
        let mut weights = copied(&scores)?;
        let tokens = k.dim(1)?;
        on_this_processor(|| {
            for row in weights.chunks_exact_mut(tokens) {
                let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                row.iter_mut().for_each(|weight| *weight = exp(scale * (*weight - largest)));
                let inverse = 1.0 / sum(row, row, |weight, _| weight);
                row.iter_mut().for_each(|weight| *weight *= inverse);
            }
        });
        like(weights, &scores)
    }
}

/// 1 / sqrt(d) of `[heads, rows, d]`.
fn scale(heads: &Tensor) -> Result<f32> {
    Ok(1.0 / (heads.dim(2)? as f32).sqrt())
}

/// Inverse of [`Attention::split`] for all sequences: `[rows, hidden]`.
fn join(sequences: &[Tensor]) -> Result<Tensor> {
    let rows = sequences.iter().map(|heads| heads.transpose(0, 1)?.flatten_from(1));
    Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        k: &CpuStorage,
        kl: &Layout,
        v: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let tensor = |storage, layout: &Layout| {
            Tensor::from_slice(values(storage, layout)?, layout.shape(), &Device::Cpu)
        };
        let (q, k, v) = (tensor(q, ql)?, tensor(k, kl)?, tensor(v, vl)?);
        let context = self.sequences().map(|(queries, tokens)| {
            let weights = Self::weights(&self.split(&q, &queries)?, &self.split(&k, &tokens)?)?;
            weights.matmul(&self.split(&v, &tokens)?)
        });
        let context = join(&context.collect::<Result<Vec<_>>>()?)?;
        Ok((CpuStorage::F32(copied(&context)?), ql.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (mut to_q, mut to_k, mut to_v) = (Vec::new(), Vec::new(), Vec::new());
        for (queries, tokens) in self.sequences() {
            let (q, grad) = (self.split(q, &queries)?, self.split(grad, &queries)?);
            let (k, v) = (self.split(k, &tokens)?, self.split(v, &tokens)?);
            let scale = scale(&q)?;
            let weights = Self::weights(&q, &k)?;
            let slopes = grad.matmul(&v.t()?)?;
            let (mut to_scores, values) = (copied(&slopes)?, copied(&weights)?);
            on_this_processor(|| {
                let rows = to_scores.chunks_exact_mut(tokens.len()).zip(values.chunks_exact(tokens.len()));
                for (slopes, weights) in rows {
                    let mean = dot(weights, slopes);
                    let slope = |(slope, weight): (&mut f32, &f32)| *slope = scale * weight * (*slope - mean);
                    slopes.iter_mut().zip(weights).for_each(slope);
                }
            });
            let to_scores = like(to_scores, &slopes)?;
            to_q.push(to_scores.matmul(&k)?);
            to_k.push(to_scores.t()?.matmul(&q)?);
            to_v.push(weights.t()?.matmul(&grad)?);
        }
        Ok((Some(join(&to_q)?), Some(join(&to_k)?), Some(join(&to_v)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{D, Device, Var};
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64;

    fn random(seed: u64, dims: &[usize]) -> Var {
        let mut random = Pcg64::seed_from_u64(seed);
        let values: Vec<f32> = (0..dims.iter().product()).map(|_| random.random_range(-1.5..1.5)).collect();
        Var::from_tensor(&Tensor::from_vec(values, dims, &Device::Cpu).unwrap()).unwrap()
    }

    /// Compares value and gradients of `fast` with those of `plain`, for a random loss.
    fn same(arguments: &[Var], fast: &Tensor, plain: &Tensor) {
        let near = |a: &Tensor, b: &Tensor| {
            let apart = copied(a).unwrap().into_iter().zip(copied(b).unwrap()).map(|(a, b)| (a - b).abs());
            let apart = apart.fold(0.0, f32::max);
            assert!(apart < 1e-4, "{apart}");
        };
        near(fast, plain);
        let weights = random(99, fast.dims());
        let grads =
            |value: &Tensor| (value * weights.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
        let (of_fast, of_plain) = (grads(fast), grads(plain));
        for argument in arguments {
            near(of_fast.get(argument).unwrap(), of_plain.get(argument).unwrap());
        }
    }

    #[test]
    fn exp_and_phi_are_as_near_as_they_say() {
        for x in (-8_600..8_800).map(|n| n as f32 / 100.0) {
            assert!((exp(x) / x.exp() - 1.0).abs() < 1e-5, "{x}");
            let expected = 0.5 * (1.0 + libm::erf(f64::from(x) * std::f64::consts::FRAC_1_SQRT_2));
            assert!((f64::from(phi(x)) - expected).abs() < 3e-7, "{x}");
        }
        assert!(exp(-1e9) < 1e-37 && exp(f32::NAN).is_nan());
    }

    #[test]
    fn bias_and_gelu_have_candle_s_values_and_gradients() {
        let (x, b) = (random(1, &[5, 16]), random(2, &[16]));
        same(&[x.clone(), b.clone()], &x.apply_op2(&b, AddBias).unwrap(), &x.broadcast_add(&b).unwrap());
        let wide = Var::from_tensor(&(x.as_tensor() * 3.0).unwrap()).unwrap();
        same(std::slice::from_ref(&wide), &wide.apply_op1(Gelu).unwrap(), &wide.gelu_erf().unwrap());
    }

    #[test]
    fn layer_norm_has_candle_s_value_and_gradients() {
        let (x, gain, bias) = (random(1, &[7, 16]), random(2, &[16]), random(3, &[16]));
        let fast = x.apply_op3(&gain, &bias, LayerNorm { eps: 1e-5 }).unwrap();
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1).unwrap()).unwrap();
        let variance = centred.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
        let unit = centred.broadcast_div(&(variance + 1e-5).unwrap().sqrt().unwrap()).unwrap();
        let plain = unit.broadcast_mul(&gain).unwrap().broadcast_add(&bias).unwrap();
        same(&[x, gain, bias], &fast, &plain);
    }

    #[test]
    fn attention_has_candle_s_value_and_gradients() {
        let (heads, size, lengths) = (2, 8, [1, 5, 9]);
        let tokens: Vec<usize> = vec![0, 1, 6, 15];
        for one_query in [false, true] {
            let queries: Vec<usize> = if one_query { vec![0, 1, 2, 3] } else { tokens.clone() };
            let q = random(1, &[queries[3], heads * size]);
            let (k, v) = (random(2, &[15, heads * size]), random(3, &[15, heads * size]));
            let op = Attention { heads, queries: queries.clone().into(), tokens: tokens.clone().into() };
            let fast = q.apply_op3(&k, &v, op).unwrap();
            let part = |x: &Var, starts: &[usize], sequence: usize, head: usize| {
                let rows = x.narrow(0, starts[sequence], starts[sequence + 1] - starts[sequence]).unwrap();
                rows.narrow(1, head * size, size).unwrap().contiguous().unwrap()
            };
            let plain = (0..lengths.len()).map(|sequence| {
                let heads: Vec<Tensor> = (0..heads)
                    .map(|head| {
                        let key = part(&k, &tokens, sequence, head).t().unwrap();
                        let scores = part(&q, &queries, sequence, head).matmul(&key).unwrap();
                        let scores = (scores / (size as f64).sqrt()).unwrap();
                        let weights = candle_nn::ops::softmax(&scores, 1).unwrap();
                        weights.matmul(&part(&v, &tokens, sequence, head)).unwrap()
                    })
                    .collect();
                Tensor::cat(&heads, 1).unwrap()
            });
            let plain = Tensor::cat(&plain.collect::<Vec<_>>(), 0).unwrap();
            same(&[q, k, v], &fast, &plain);
        }
    }
}
