//! The student's operations that candle has no backward for, or only one in many passes over memory.
//! Each is a custom operation on packed rows; its test holds value and gradients to candle's own, made
//! of plain operations.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use libm::erff;
use std::f32::consts::FRAC_1_SQRT_2;
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
    /// Where each sequence's queries start, and their number: `[sequences + 1]`.
    pub queries: Arc<[usize]>,
    /// Where its tokens start.
    pub tokens: Arc<[usize]>,
}

/// The values of a contiguous f32 tensor.
fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("a contiguous tensor is expected") };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// The same, copied out of a tensor.
fn copied(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

fn like(values: Vec<f32>, tensor: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, tensor.shape(), tensor.device())
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
        let sum = x.chunks_exact(b.len()).flat_map(|row| row.iter().zip(b).map(|(x, b)| x + b)).collect();
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
        for row in copied(grad)?.chunks_exact(sum.len()) {
            add(&mut sum, row);
        }
        Ok((Some(grad.clone()), Some(like(sum, b)?)))
    }
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let value = |&x: &f32| x * phi(x);
        Ok((CpuStorage::F32(values(x, layout)?.iter().map(value).collect()), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        /// 1 / sqrt(2 pi).
        const DENSITY: f32 = 0.398_942_3;
        let slope = |(x, grad): (f32, f32)| grad * (phi(x) + x * DENSITY * (-0.5 * x * x).exp());
        let slopes = copied(x)?.into_iter().zip(copied(grad)?).map(slope).collect();
        Ok(Some(like(slopes, x)?))
    }
}

/// The normal distribution's integral up to x.
fn phi(x: f32) -> f32 {
    0.5 * (1.0 + erff(x * FRAC_1_SQRT_2))
}

impl LayerNorm {
    /// Mean and 1 / deviation of a row.
    fn moments(&self, row: &[f32]) -> (f32, f32) {
        let n = row.len() as f32;
        let mean = row.iter().sum::<f32>() / n;
        let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / n;
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
        let mut normed = Vec::with_capacity(x.len());
        for row in x.chunks_exact(gain.len()) {
            let (mean, inverse) = self.moments(row);
            let unit = row.iter().map(|x| (x - mean) * inverse);
            normed.extend(unit.zip(gain.iter().zip(bias)).map(|(x, (gain, bias))| x * gain + bias));
        }
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
        let (xs, gains, grads) = (copied(x)?, copied(gain)?, copied(grad)?);
        let width = gains.len();
        let (mut to_gain, mut to_bias) = (vec![0.0; width], vec![0.0; width]);
        let mut to_x = Vec::with_capacity(xs.len());
        let (mut unit, mut scaled) = (vec![0.0; width], vec![0.0; width]);
        for (row, grad) in xs.chunks_exact(width).zip(grads.chunks_exact(width)) {
            let (mean, inverse) = self.moments(row);
            for place in 0..width {
                unit[place] = (row[place] - mean) * inverse;
                scaled[place] = grad[place] * gains[place];
                to_gain[place] += grad[place] * unit[place];
                to_bias[place] += grad[place];
            }
            let n = width as f32;
            let average = scaled.iter().sum::<f32>() / n;
            let along = dot(&scaled, &unit) / n;
            let slope =
                scaled.iter().zip(&unit).map(|(scaled, unit)| inverse * (scaled - average - unit * along));
            to_x.extend(slope);
        }
        Ok((Some(like(to_x, x)?), Some(like(to_gain, gain)?), Some(like(to_bias, bias)?)))
    }
}

/// One head's rows of one sequence, copied out so that they lie together: `[rows, size]`.
fn head(from: &[f32], hidden: usize, rows: std::ops::Range<usize>, column: usize, size: usize) -> Vec<f32> {
    rows.flat_map(|row| &from[row * hidden + column..][..size]).copied().collect()
}

/// The way back.
fn put_head(to: &mut [f32], hidden: usize, first: usize, column: usize, size: usize, rows: &[f32]) {
    for (row, values) in rows.chunks_exact(size).enumerate() {
        to[(first + row) * hidden + column..][..size].copy_from_slice(values);
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    // Eight sums side by side, so that the compiler may use vectors.
    let mut sums = [0.0f32; 8];
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    for (a, b) in a8.iter().zip(b8) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

fn add(to: &mut [f32], values: &[f32]) {
    to.iter_mut().zip(values).for_each(|(to, value)| *to += value);
}

fn add_scaled(to: &mut [f32], factor: f32, values: &[f32]) {
    to.iter_mut().zip(values).for_each(|(to, value)| *to += factor * value);
}

impl Attention {
    /// Softmax of a query's scores against `keys: [tokens, size]`.
    fn weights(query: &[f32], keys: &[f32], scale: f32, weights: &mut Vec<f32>) {
        weights.clear();
        weights.extend(keys.chunks_exact(query.len()).map(|key| scale * dot(query, key)));
        let largest = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        weights.iter_mut().for_each(|weight| *weight = (*weight - largest).exp());
        let inverse = 1.0 / weights.iter().sum::<f32>();
        weights.iter_mut().for_each(|weight| *weight *= inverse);
    }

    /// Calls `work` for every sequence and head with the rows of its queries, of its tokens, and the
    /// head's first column.
    fn each(
        &self,
        hidden: usize,
        mut work: impl FnMut(std::ops::Range<usize>, std::ops::Range<usize>, usize),
    ) {
        for (queries, tokens) in self.queries.windows(2).zip(self.tokens.windows(2)) {
            for column in (0..hidden).step_by(hidden / self.heads) {
                work(queries[0]..queries[1], tokens[0]..tokens[1], column);
            }
        }
    }
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
        let (q, k, v) = (values(q, ql)?, values(k, kl)?, values(v, vl)?);
        let hidden = ql.dims()[1];
        let size = hidden / self.heads;
        let scale = 1.0 / (size as f32).sqrt();
        let mut context = vec![0.0; q.len()];
        let mut weights = Vec::new();
        self.each(hidden, |queries, tokens, column| {
            let keys = head(k, hidden, tokens.clone(), column, size);
            let states = head(v, hidden, tokens, column, size);
            for query in queries {
                let place = query * hidden + column;
                Self::weights(&q[place..][..size], &keys, scale, &mut weights);
                let to = &mut context[place..][..size];
                for (&weight, state) in weights.iter().zip(states.chunks_exact(size)) {
                    add_scaled(to, weight, state);
                }
            }
        });
        Ok((CpuStorage::F32(context), ql.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let hidden = q.dim(1)?;
        let size = hidden / self.heads;
        let scale = 1.0 / (size as f32).sqrt();
        let (qs, ks, vs, grads) = (copied(q)?, copied(k)?, copied(v)?, copied(grad)?);
        let (mut to_q, mut to_k, mut to_v) = (vec![0.0; qs.len()], vec![0.0; ks.len()], vec![0.0; vs.len()]);
        let (mut weights, mut slopes) = (Vec::new(), Vec::new());
        self.each(hidden, |queries, tokens, column| {
            let first = tokens.start;
            let keys = head(&ks, hidden, tokens.clone(), column, size);
            let states = head(&vs, hidden, tokens, column, size);
            let (mut to_keys, mut to_states) = (vec![0.0; keys.len()], vec![0.0; states.len()]);
            for query in queries {
                let place = query * hidden + column;
                let (asked, grad) = (&qs[place..][..size], &grads[place..][..size]);
                Self::weights(asked, &keys, scale, &mut weights);
                slopes.clear();
                slopes.extend(states.chunks_exact(size).map(|state| dot(grad, state)));
                let mean = dot(&weights, &slopes);
                let to = &mut to_q[place..][..size];
                for (token, (&weight, &slope)) in weights.iter().zip(&slopes).enumerate() {
                    let rows = token * size..(token + 1) * size;
                    let score = scale * weight * (slope - mean);
                    add_scaled(to, score, &keys[rows.clone()]);
                    add_scaled(&mut to_keys[rows.clone()], score, asked);
                    add_scaled(&mut to_states[rows], weight, grad);
                }
            }
            put_head(&mut to_k, hidden, first, column, size, &to_keys);
            put_head(&mut to_v, hidden, first, column, size, &to_states);
        });
        Ok((Some(like(to_q, q)?), Some(like(to_k, k)?), Some(like(to_v, v)?)))
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

    /// Holds value and gradients of `fast` to those of `plain`, by a random loss.
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
