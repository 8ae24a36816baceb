//! Each operation against its reference, on every processor that is here, at ragged shapes and large
//! magnitudes. Tolerances are at most twice the error of the naive version in the same dtype.

use super::{
    Activation, AddTo, Angles, Before, Bf16, Buffer, Dense, Distances, Dtype, F32, FirstScratch, FirstToken,
    Float, Gelu, Head, HeadScratch, Heads, Input, Int8, Kernel, Linear, Norm, Operand, PAD, Portable,
    Projected, Reach, Rotation, Scratch, Simd, attention, attention_by_distance_reference,
    attention_reference, first_token_attention, gate, gelu_reference, layer_norm, layer_norm_into,
    layer_norm_reference, linear, linear_reference, norm_into, rotate,
};
use half::bf16;
use rand::RngExt;
use rand_pcg::Pcg64;
use std::sync::Arc;

/// Runs a block with `simd` bound to each processor that this one can be.
macro_rules! on_every_processor {
    (|$simd:ident| $body:expr) => {{
        {
            let $simd = crate::ops::Portable::default();
            $body
        }
        {
            let $simd = crate::ops::Emulated::default();
            $body
        }
        #[cfg(target_arch = "x86_64")]
        {
            if let Some($simd) = crate::ops::Avx2::detect() {
                $body
            }
            if let Some($simd) = crate::ops::AvxVnni::detect() {
                $body
            }
            if let Some($simd) = crate::ops::Avx512Vnni::detect() {
                $body
            }
            if let Some($simd) = crate::ops::Avx512::detect() {
                $body
            }
            if let Some($simd) = crate::ops::Amx::detect() {
                $body
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            if let Some($simd) = crate::ops::Neon::detect() {
                $body
            }
            if let Some($simd) = crate::ops::NeonDot::detect() {
                $body
            }
            if let Some($simd) = crate::ops::NeonBf16::detect() {
                $body
            }
        }
    }};
}
pub(super) use on_every_processor;

/// The same for those with bf16.
macro_rules! on_every_bf16 {
    (|$simd:ident| $body:expr) => {{
        {
            let $simd = Portable::default();
            $body
        }
        {
            let $simd = crate::ops::Emulated::default();
            $body
        }
        #[cfg(target_arch = "x86_64")]
        {
            if let Some($simd) = crate::ops::Avx512::detect() {
                $body
            }
            if let Some($simd) = crate::ops::Amx::detect() {
                $body
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            if let Some($simd) = crate::ops::NeonBf16::detect() {
                $body
            }
        }
    }};
}

const ROWS: [usize; 8] = [1, 2, 11, 12, 13, 25, 64, 107];

fn random(seed: u64) -> Pcg64 {
    Pcg64::new(seed.into(), 1)
}

fn values(random: &mut Pcg64, count: usize, magnitude: f32) -> Vec<f32> {
    (0..count).map(|_| (random.random::<f32>() * 2.0 - 1.0) * magnitude).collect()
}

fn dense(random: &mut Pcg64, outputs: usize, inputs: usize) -> Dense {
    let scale = 1.5 / (inputs as f32).sqrt();
    let weight = values(random, outputs * inputs, scale);
    Dense { outputs, inputs, weight, bias: values(random, outputs, 0.5) }
}

/// The largest error relative to the largest value.
fn error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1e-20_f32, |largest, value| largest.max(value.abs()));
    let errors = std::iter::zip(found, expected).map(|(found, expected)| (found - expected).abs());
    errors.fold(0.0, |worst: f32, error| if error > worst || error.is_nan() { error } else { worst })
        / largest
}

fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&value| bf16::from_f32(value).to_f32()).collect()
}

/// A linear map on rows, with the result added to zeros.
fn product<S: Simd, D: Dtype<S>>(simd: S, x: &[f32], dense: &Dense, input: Input) -> Vec<f32> {
    let packed = Linear::<S, D>::pack(dense, input);
    let mut operand = Operand::default();
    operand.fill::<S, D>(simd, x, dense.inputs);
    let mut y = vec![0.0; x.len() / dense.inputs * dense.outputs];
    linear(simd, operand.all(), &packed, AddTo::new(&mut y, dense.outputs));
    y
}

#[test]
fn a_linear_map_is_the_reference_s_in_every_dtype() {
    let mut random = random(1);
    for rows in ROWS {
        for (outputs, inputs, magnitude) in [(32, 32, 1.0), (96, 160, 1.0), (128, 512, 1e4), (64, 96, 1e-4)] {
            let (x, dense) =
                (values(&mut random, rows * inputs, magnitude), dense(&mut random, outputs, inputs));
            let exact = linear_reference(&x, &dense);
            on_every_processor!(|simd| {
                assert!(error(&product::<_, F32>(simd, &x, &dense, Input::Signed), &exact) < 2e-6);
                assert!(error(&product::<_, Int8>(simd, &x, &dense, Input::Signed), &exact) < 0.02);
            });
            let weight = rounded(&dense.weight);
            let naive = linear_reference(&rounded(&x), &Dense { weight, bias: dense.bias.clone(), ..dense });
            on_every_bf16!(|simd| {
                assert!(error(&product::<_, Bf16>(simd, &x, &dense, Input::Signed), &naive) < 2e-6);
            });
        }
    }
}

#[test]
fn bytes_are_the_same_on_every_processor() {
    let mut random = random(2);
    let (x, dense) = (values(&mut random, 13 * 96, 3.0), dense(&mut random, 64, 96));
    let expected = product::<_, Int8>(Portable::default(), &x, &dense, Input::Signed);
    on_every_processor!(|simd| {
        // The products are exact; the last step of AVX rounds once less.
        assert!(error(&product::<_, Int8>(simd, &x, &dense, Input::Signed), &expected) < 1e-6);
    });
}

/// Multiplies words of each byte by words of each signed byte and another one.
struct BytePairs;

impl<S: Simd> Kernel<S> for BytePairs {
    type Output = ();
    #[inline(always)]
    fn run(self, simd: S) {
        let (mut row, mut sums) = ([0_u32; 16], [0.0; 16]);
        for value in 0..=255_u8 {
            // SAFETY: there is room for a vector of the widest processor.
            unsafe { simd.store_bytes(row.as_mut_ptr(), 0, simd.splat(value.into())) };
            for weight in i8::MIN..=i8::MAX {
                let weights = &[weight, -127, weight, weight][..S::BYTES_TO_WORD];
                let bits = 32 / S::BYTES_TO_WORD;
                let word = weights.iter().enumerate().fold(0, |word, (place, &weight)| {
                    let weight = i32::from(weight).cast_unsigned() & (u32::MAX >> (32 - bits));
                    word | weight << (place * bits)
                });
                let sum = simd.dot_bytes(simd.splat_word(7), simd.broadcast(row[0]), simd.splat_word(word));
                // SAFETY: as above.
                unsafe { simd.store(sums.as_mut_ptr(), simd.as_floats(sum)) };
                let of_weights: i32 = weights.iter().map(|&weight| i32::from(weight)).sum();
                let expected = 7 + (i32::from(value) - i32::from(S::BYTE_OFFSET)) * of_weights;
                for sum in &sums[..S::LANES] {
                    assert_eq!(sum.to_bits().cast_signed(), expected, "{value} by {weights:?}");
                }
            }
        }
    }
}

#[test]
fn products_of_bytes_are_exact() {
    on_every_processor!(|simd| simd.launch(BytePairs));
}

#[test]
fn a_row_s_result_does_not_depend_on_its_neighbours() {
    fn check<S: Simd, D: Dtype<S>>(simd: S, x: &[f32], dense: &Dense) {
        let together = product::<S, D>(simd, x, dense, Input::Signed);
        for (row, expected) in x.chunks_exact(dense.inputs).zip(together.chunks_exact(dense.outputs)) {
            assert_eq!(product::<S, D>(simd, row, dense, Input::Signed), expected);
        }
    }
    let mut random = random(3);
    let (x, dense) = (values(&mut random, 29 * 64, 1.0), dense(&mut random, 96, 64));
    on_every_processor!(|simd| {
        check::<_, F32>(simd, &x, &dense);
        check::<_, Int8>(simd, &x, &dense);
    });
    on_every_bf16!(|simd| check::<_, Bf16>(simd, &x, &dense));
}

/// gelu(x W + b) V + c, the feed-forward part.
fn feed_forward<S: Simd, D: Dtype<S>, A: Float<S>>(
    simd: S,
    x: &[f32],
    (up, down): (&Dense, &Dense),
    gelu: Gelu,
) -> Vec<f32> {
    let (mut input, mut staging, mut inner) = (Operand::default(), Operand::default(), Operand::default());
    input.fill::<S, D>(simd, x, up.inputs);
    D::activate::<A>(simd, input.all(), &Linear::pack(up, Input::Signed), gelu, (&mut staging, &mut inner));
    let mut y = vec![0.0; x.len() / up.inputs * down.outputs];
    let packed = Linear::<S, D>::pack(down, Input::Activated);
    linear(simd, inner.all(), &packed, AddTo::new(&mut y, down.outputs));
    y
}

#[test]
fn the_feed_forward_part_is_the_reference_s_in_every_dtype() {
    let mut random = random(4);
    for (rows, gelu) in ROWS.into_iter().zip([Gelu::Erf, Gelu::Tanh].into_iter().cycle()) {
        let x = values(&mut random, rows * 64, 2.0);
        let (up, down) = (dense(&mut random, 256, 64), dense(&mut random, 64, 256));
        let inner: Vec<f32> =
            linear_reference(&x, &up).into_iter().map(|x| gelu_reference(x, gelu)).collect();
        let exact = linear_reference(&inner, &down);
        on_every_processor!(|simd| {
            assert!(error(&feed_forward::<_, F32, F32>(simd, &x, (&up, &down), gelu), &exact) < 3e-6);
            assert!(error(&feed_forward::<_, Int8, F32>(simd, &x, (&up, &down), gelu), &exact) < 0.03);
        });
        on_every_bf16!(|simd| {
            assert!(error(&feed_forward::<_, Bf16, Bf16>(simd, &x, (&up, &down), gelu), &exact) < 0.012);
            assert!(error(&feed_forward::<_, Int8, Bf16>(simd, &x, (&up, &down), gelu), &exact) < 0.03);
        });
    }
}

/// Rows of `[queries, keys, values]`, each part of its width in values, in a dtype; and words from row to row.
fn joined<S: Simd, A: Float<S>>(simd: S, parts: &[(&[f32], usize)]) -> (Vec<u32>, usize) {
    let tokens = parts[0].0.len() / parts[0].1;
    let all: usize = parts.iter().map(|(_, width)| width).sum();
    let stride = (all + 5 * A::GROUP) / A::GROUP;
    // Tiles read rows beyond the sequence, where anything may lie.
    let mut words = vec![f32::NAN.to_bits(); tokens.next_multiple_of(32) * stride];
    for token in 0..tokens {
        let row: Vec<f32> =
            parts.iter().flat_map(|(part, width)| &part[token * width..][..*width]).copied().collect();
        let mut operand = Operand::default();
        operand.fill::<S, A>(simd, &row, all);
        words[token * stride..][..all / A::GROUP].copy_from_slice(&operand.words.words()[..all / A::GROUP]);
    }
    (words, stride)
}

/// Contexts of the rows from a place on; the keys and values before it lie in parts that end at `ends`.
fn contexts<S: Simd, A: Float<S>>(
    simd: S,
    [query, key, value]: [&[f32]; 3],
    heads: Heads,
    (kv_heads, reach): (usize, Reach),
    ends: &[usize],
) -> Vec<f32> {
    let (width, kv_width) = (heads.width(), kv_heads * heads.size);
    let place = ends.last().copied().unwrap_or(0);
    let tokens = query.len() / width - place;
    let begin = |end: usize| ends.iter().rev().copied().find(|&other| other < end).unwrap_or(0);
    let kept: Vec<_> = ends
        .iter()
        .map(|&end| {
            let rows = begin(end) * kv_width..end * kv_width;
            let (words, stride) =
                joined::<S, A>(simd, &[(&key[rows.clone()], kv_width), (&value[rows.clone()], kv_width)]);
            (words, stride, end - begin(end))
        })
        .collect();
    let before: Vec<_> =
        kept.iter().map(|&(ref words, stride, tokens)| Before { words, stride, tokens }).collect();
    let own = [(query, width), (key, kv_width), (value, kv_width)];
    let (words, stride) = joined::<S, A>(simd, &own.map(|(rows, width)| (&rows[place * width..], width)));
    let projected =
        Projected { words: &words, stride, tokens, before: &before, kv_heads, reach, distances: None };
    attended::<S, A>(simd, projected, heads)
}

/// Contexts by [`attention`].
fn attended<S: Simd, A: Float<S>>(simd: S, projected: Projected<'_>, heads: Heads) -> Vec<f32> {
    let (tokens, width) = (projected.tokens, heads.width());
    let (mut scratch, mut context) = (Scratch::default(), Operand::default());
    context.shape::<S, A>(tokens + 1, width);
    attention::<S, A>(simd, projected, heads, &mut scratch, (&mut context, 1));
    let mut floats = Operand::default();
    floats.fill_from::<S, F32, A>(simd, context.all());
    let rows = floats.words.floats().chunks_exact(floats.stride()).skip(1).take(tokens);
    rows.flat_map(|row| row[..width].to_vec()).collect()
}

#[test]
fn attention_is_the_reference_s_at_ragged_lengths() {
    let mut random = random(5);
    for (tokens, magnitude) in [(1, 1.0), (2, 1.0), (31, 3.0), (32, 1.0), (33, 20.0), (64, 1.0), (129, 1.0)] {
        for (count, size, kv_heads, reach) in [
            (1, 32, 1, Reach::All),
            (1, 64, 1, Reach::All),
            (2, 32, 1, Reach::Causal),
            (2, 32, 2, Reach::Window(1)),
            (1, 32, 1, Reach::Window(37)),
        ] {
            let heads = Heads { count, size };
            let mut states = |heads: usize| values(&mut random, tokens * heads * size, magnitude);
            let (query, key, value) = (states(count), states(kv_heads), states(kv_heads));
            let exact = attention_reference(&query, &key, &value, heads, reach);
            on_every_processor!(|simd| {
                let found = contexts::<_, F32>(simd, [&query, &key, &value], heads, (kv_heads, reach), &[]);
                // Scores of 10^4 round to a thousandth in f32.
                assert!(error(&found, &exact) < if magnitude > 10.0 { 2e-3 } else { 1e-5 });
            });
            let naive = attention_reference(&rounded(&query), &rounded(&key), &rounded(&value), heads, reach);
            on_every_bf16!(|simd| {
                let found = contexts::<_, Bf16>(simd, [&query, &key, &value], heads, (kv_heads, reach), &[]);
                assert!(error(&found, &naive) < 0.008, "{tokens} tokens, {heads:?}, {reach:?}");
            });
        }
    }
}

/// Contexts with distances, of which 96 to each side have rows of their own or share them with neighbours.
fn contexts_by_distance<S: Simd, A: Float<S>>(
    simd: S,
    [query, key, value]: [&[f32]; 3],
    heads: Heads,
    rows: [&[f32]; 2],
) -> Vec<f32> {
    let width = heads.width();
    let places: Vec<usize> = (-128..128).map(row_of_distance).collect();
    let distances = Distances::pack::<S, A>(rows, &places, heads);
    let (words, stride) = joined::<S, A>(simd, &[query, key, value].map(|rows| (rows, width)));
    let (tokens, kv_heads) = (query.len() / width, heads.count);
    let distances = Some(&distances);
    attended::<S, A>(
        simd,
        Projected { words: &words, stride, tokens, before: &[], kv_heads, reach: Reach::All, distances },
        heads,
    )
}

const ROWS_OF_DISTANCES: usize = 65;

/// Pairs and triples of distances share rows, more of them farther away; from 96 on all.
fn row_of_distance(distance: isize) -> usize {
    let far = distance.unsigned_abs().min(96);
    let row = if far < 16 { far } else { 16 + (far - 16).div_ceil(5) };
    if distance < 0 { 32 - row } else { 32 + row }
}

#[test]
fn attention_by_distance_is_the_reference_s_at_ragged_lengths() {
    let mut random = random(16);
    let lengths = [1, 2, 15, 16, 17, 31, 32, 33, 47, 64, 65, 96, 127, 129, 200, 300];
    for (number, tokens) in lengths.into_iter().enumerate() {
        let heads = [Heads { count: 1, size: 64 }, Heads { count: 2, size: 32 }][number % 2];
        let magnitude = if number % 5 == 4 { 8.0 } else { 1.0 };
        let mut states = |rows: usize| values(&mut random, rows * heads.width(), magnitude);
        let [query, key, value] = [(); 3].map(|()| states(tokens));
        let rows = [(); 2].map(|()| states(ROWS_OF_DISTANCES));
        let exact = attention_by_distance_reference(
            [&query, &key, &value],
            heads,
            rows.each_ref().map(|rows| &rows[..]),
            row_of_distance,
        );
        on_every_processor!(|simd| {
            let rows = rows.each_ref().map(|rows| &rows[..]);
            let found = contexts_by_distance::<_, F32>(simd, [&query, &key, &value], heads, rows);
            assert!(error(&found, &exact) < 1e-4, "{tokens} tokens: {}", error(&found, &exact));
        });
        let [query, key, value] = [&query, &key, &value].map(|states| rounded(states));
        let rows = rows.map(|rows| rounded(&rows));
        let rows = rows.each_ref().map(|rows| &rows[..]);
        let naive = attention_by_distance_reference([&query, &key, &value], heads, rows, row_of_distance);
        on_every_bf16!(|simd| {
            let found = contexts_by_distance::<_, Bf16>(simd, [&query, &key, &value], heads, rows);
            assert!(error(&found, &naive) < 0.008, "{tokens} tokens: {}", error(&found, &naive));
        });
    }
}

#[test]
fn contexts_do_not_depend_on_where_earlier_keys_lie() {
    let mut random = random(15);
    for (tokens, ends) in [
        (33, &[1][..]),
        (70, &[32]),
        (70, &[69]),
        (65, &[5, 6, 7, 40]),
        (129, &[31, 33, 128]),
        (200, &[77, 100]),
        (97, &[64, 96]),
    ] {
        for (count, size, kv_heads, magnitude) in [(2, 32, 1, 1.0), (4, 64, 2, 30.0)] {
            let heads = Heads { count, size };
            let mut states = |heads: usize| values(&mut random, tokens * heads * size, magnitude);
            let (query, key, value) = (states(count), states(kv_heads), states(kv_heads));
            let (states, kind) = ([&query[..], &key, &value], (kv_heads, Reach::Causal));
            let own = ends[ends.len() - 1] * heads.width();
            on_every_processor!(|simd| {
                let whole = contexts::<_, F32>(simd, states, heads, kind, &[]);
                assert_eq!(contexts::<_, F32>(simd, states, heads, kind, ends), whole[own..], "{ends:?}");
            });
            on_every_bf16!(|simd| {
                let whole = contexts::<_, Bf16>(simd, states, heads, kind, &[]);
                assert_eq!(contexts::<_, Bf16>(simd, states, heads, kind, ends), whole[own..], "{ends:?}");
            });
        }
    }
}

/// Values of rows that an operand or a buffer holds in a dtype.
fn read<S: Simd, A: Float<S>>(simd: S, words: &[u32], stride: usize, width: usize) -> Vec<f32> {
    let mut floats = Operand::default();
    let mut rows = Operand::default();
    let count = words.len() / stride;
    rows.shape::<S, A>(count, width);
    let own = rows.stride();
    for (to, from) in rows.words.words_mut().chunks_exact_mut(own).zip(words.chunks_exact(stride)) {
        to[..width / A::GROUP].copy_from_slice(&from[..width / A::GROUP]);
    }
    floats.fill_from::<S, F32, A>(simd, rows.all());
    let rows = floats.words.floats().chunks_exact(floats.stride()).take(count);
    rows.flat_map(|row| row[..width].to_vec()).collect()
}

/// Rows of f32 in a dtype.
fn written<S: Simd, A: Float<S>>(simd: S, values: &[f32], width: usize) -> (Vec<u32>, usize) {
    let mut operand = Operand::default();
    operand.fill::<S, A>(simd, values, width);
    let stride = operand.stride();
    (operand.words.words()[..values.len() / width * stride].to_vec(), stride)
}

#[test]
fn queries_and_keys_are_normed_and_turned_by_their_places() {
    let (head_dim, size, theta, tokens) = (24, 32, 100.0_f64, 7);
    let [queries, keys] = [3, 1];
    let mut random = random(12);
    // The head's two halves, 12 values each, begin at 0 and at 16.
    let place = |at: usize| if at < 12 { at } else { at + 4 };
    let mut rows = vec![0.0; tokens * (queries + keys + 1) * size];
    for head in rows.chunks_exact_mut(size) {
        (0..head_dim).for_each(|at| head[place(at)] = random.random::<f32>() * 4.0 - 2.0);
    }
    let mut gains = [vec![0.0; size], vec![0.0; size]];
    for gain in &mut gains {
        (0..head_dim).for_each(|at| gain[place(at)] = random.random::<f32>() + 0.5);
    }
    for has_norms in [false, true] {
        let mut expected = rows.clone();
        for (number, head) in expected.chunks_exact_mut(size).enumerate() {
            let (token, head_number) = (number / (queries + keys + 1), number % (queries + keys + 1));
            if head_number == queries + keys {
                continue;
            }
            let mut values: Vec<f64> = (0..head_dim).map(|at| f64::from(head[place(at)])).collect();
            if has_norms {
                let square = values.iter().map(|value| value * value).sum::<f64>() / head_dim as f64;
                for (at, value) in values.iter_mut().enumerate() {
                    let gain = gains[usize::from(head_number >= queries)][place(at)];
                    *value *= f64::from(gain) / (square + 1e-6).sqrt();
                }
            }
            for at in 0..head_dim / 2 {
                let angle = token as f64 * theta.powf(-2.0 * at as f64 / head_dim as f64);
                let (first, second) = (values[at], values[at + head_dim / 2]);
                head[place(at)] = (first * angle.cos() - second * angle.sin()) as f32;
                head[place(at + head_dim / 2)] = (second * angle.cos() + first * angle.sin()) as f32;
            }
        }
        let frequency = |at: usize| theta.powf(-2.0 * at as f64 / head_dim as f64) as f32;
        let frequencies: Vec<f32> = (0..head_dim / 2).map(frequency).collect();
        let rotation = Rotation::new(Arc::new(Angles::new(&frequencies, tokens)));
        let rotation = if has_norms { rotation.with_norms([&gains[0], &gains[1]], 1e-6) } else { rotation };
        let width = (queries + keys + 1) * size;
        on_every_processor!(|simd| {
            let (mut words, stride) = written::<_, F32>(simd, &rows, width);
            rotate::<_, F32>(simd, &rotation, (&mut words, stride), 0, [queries, keys]);
            assert!(error(&read::<_, F32>(simd, &words, stride, width), &expected) < 2e-6);
            let (mut from_third, _) = written::<_, F32>(simd, &rows[3 * width..], width);
            rotate::<_, F32>(simd, &rotation, (&mut from_third, stride), 3, [queries, keys]);
            assert_eq!(from_third, words[3 * stride..]);
        });
        on_every_bf16!(|simd| {
            let (mut words, stride) = written::<_, Bf16>(simd, &rows, width);
            rotate::<_, Bf16>(simd, &rotation, (&mut words, stride), 0, [queries, keys]);
            assert!(error(&read::<_, Bf16>(simd, &words, stride, width), &expected) < 0.01);
        });
    }
}

#[test]
fn a_gate_multiplies_its_activation_with_the_other_half() {
    let mut random = random(13);
    let (rows, width) = (9, 96);
    let halves = values(&mut random, rows * 2 * width, 3.0);
    type Function = fn(f64) -> f64;
    let reference: [(Activation, Function); 4] = [
        (Activation::Gelu(Gelu::Erf), |x| f64::from(gelu_reference(x as f32, Gelu::Erf))),
        (Activation::Gelu(Gelu::Tanh), |x| f64::from(gelu_reference(x as f32, Gelu::Tanh))),
        (Activation::Silu, |x| x / (1.0 + (-x).exp())),
        (Activation::Tanh, f64::tanh),
    ];
    for (activation, function) in reference {
        let expected: Vec<f32> = halves
            .chunks_exact(2 * width)
            .flat_map(|row| {
                let (gate, up) = row.split_at(width);
                let value = |(&gate, &up): (&f32, &f32)| (function(f64::from(gate)) * f64::from(up)) as f32;
                gate.iter().zip(up).map(value).collect::<Vec<_>>()
            })
            .collect();
        fn run<S: Simd, D: Dtype<S>, A: Float<S>>(
            simd: S,
            halves: &[f32],
            width: usize,
            activation: Activation,
        ) -> Operand {
            let (words, stride) = written::<S, A>(simd, halves, 2 * width);
            let (mut scratch, mut output) = (Buffer::default(), Operand::default());
            let count = halves.len() / (2 * width);
            gate::<S, D, A>(simd, (&words, stride), (count, width), activation, (&mut scratch, &mut output));
            output
        }
        on_every_processor!(|simd| {
            let found = run::<_, F32, F32>(simd, &halves, width, activation);
            let found =
                read::<_, F32>(simd, &found.words.words()[..rows * found.stride()], found.stride(), width);
            assert!(error(&found, &expected) < 1e-6, "{activation:?}");
        });
        on_every_bf16!(|simd| {
            let found = run::<_, Bf16, Bf16>(simd, &halves, width, activation);
            let found =
                read::<_, Bf16>(simd, &found.words.words()[..rows * found.stride()], found.stride(), width);
            assert!(error(&found, &expected) < 0.012, "{activation:?}");
        });
    }
}

#[test]
fn a_norm_by_the_root_mean_square_leaves_its_rows() {
    let mut random = random(14);
    let hidden = 72;
    let stride = 96;
    let gain = values(&mut random, hidden, 2.0);
    let mut rows = vec![0.0; 4 * stride];
    for row in rows.chunks_exact_mut(stride) {
        row[..hidden].copy_from_slice(&values(&mut random, hidden, 5.0));
    }
    let mut expected = vec![0.0; 4 * stride];
    for (to, from) in expected.chunks_exact_mut(stride).zip(rows.chunks_exact(stride)) {
        let square = from.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>() / hidden as f64;
        for (to, (&value, &gain)) in to.iter_mut().zip(from.iter().zip(&gain)) {
            *to = (f64::from(value) * f64::from(gain) / (square + 1e-6).sqrt()) as f32;
        }
    }
    let norm = Norm::root_mean_square(&gain, 1e-6);
    on_every_processor!(|simd| {
        let (mut scratch, mut operand, kept) = (Buffer::default(), Operand::default(), rows.clone());
        operand.fill::<_, F32>(simd, &vec![0.0; 4 * stride], stride);
        norm_into::<_, F32>(simd, &norm, &rows, (&mut operand, 0), &mut scratch);
        let found =
            read::<_, F32>(simd, &operand.words.words()[..4 * operand.stride()], operand.stride(), stride);
        assert!(error(&found, &expected) < 1e-6);
        assert_eq!(kept, rows);
    });
}

#[test]
fn the_first_tokens_attention_is_that_of_whole_sequences() {
    let mut random = random(6);
    for (count, lengths) in [(3, vec![1, 2, 31, 33, 130]), (18, vec![5; 40]), (1, vec![16])] {
        let heads = Heads { count, size: 32 };
        let (width, hidden) = (heads.width(), 3 * PAD);
        let tokens: usize = lengths.iter().sum();
        let states = values(&mut random, tokens * hidden, 1.5);
        let maps = [(); 3].map(|()| dense(&mut random, width, hidden));
        let [query, key, value] = [0, 1, 2].map(|map| linear_reference(&states, &maps[map]));
        let mut starts = vec![0];
        lengths.iter().for_each(|length| starts.push(starts[starts.len() - 1] + length));
        let exact: Vec<f32> = starts
            .windows(2)
            .flat_map(|bounds| {
                let rows = bounds[0] * width..bounds[1] * width;
                let [query, key, value] = [&query, &key, &value].map(|states| &states[rows.clone()]);
                attention_reference(query, key, value, heads, Reach::All)[..width].to_vec()
            })
            .collect();
        on_every_processor!(|simd| {
            let (mut scratch, mut contexts) = (FirstScratch::default(), Vec::new());
            let layer = FirstToken::new(heads, &maps);
            first_token_attention(simd, &layer, (&states, &starts), &mut scratch, &mut contexts);
            assert!(error(&contexts, &exact) < 5e-6, "{count} heads");
        });
    }
}

#[test]
#[should_panic(expected = "maps go from states to heads")]
fn a_map_that_is_cut_short_is_refused_before_a_pointer_is_made() {
    let mut random = random(9);
    let mut maps = [(); 3].map(|()| dense(&mut random, PAD, PAD));
    maps[1].weight.pop();
    let _ = FirstToken::<Portable>::new(Heads { count: 1, size: PAD }, &maps);
}

#[test]
fn a_layer_norm_bears_a_large_mean_and_a_width_of_its_own() {
    let mut random = random(7);
    for (hidden, mean) in [(32, 0.0), (128, 1e4), (312, 100.0), (7, 1e3)] {
        let (gain, bias) = (values(&mut random, hidden, 2.0), values(&mut random, hidden, 1.0));
        let rows: Vec<f32> =
            values(&mut random, 3 * hidden, 1.0).into_iter().map(|value| value + mean).collect();
        let exact = layer_norm_reference(&gain, &bias, 1e-12, &rows);
        let norm = Norm::new(&gain, &bias, 1e-12);
        let stride = hidden.next_multiple_of(PAD);
        on_every_processor!(|simd| {
            let mut padded = vec![0.0; 3 * stride];
            for (to, from) in padded.chunks_exact_mut(stride).zip(rows.chunks_exact(hidden)) {
                to[..hidden].copy_from_slice(from);
            }
            let (mut into, mut operand) = (padded.clone(), Operand::default());
            operand.fill::<_, F32>(simd, &vec![7.0; 4 * stride], stride);
            layer_norm(simd, &norm, &mut padded);
            layer_norm_into::<_, F32>(simd, &norm, &mut into, (&mut operand, 1));
            assert_eq!(into, padded);
            let encoded = operand.words.floats().chunks_exact(operand.stride()).skip(1).take(3);
            assert!(encoded.zip(padded.chunks_exact(stride)).all(|(found, row)| found[..stride] == *row));
            let found: Vec<f32> =
                padded.chunks_exact(stride).flat_map(|row| row[..hidden].to_vec()).collect();
            // An f32 near 10^4 is known to 10^-3, before anything is computed.
            assert!(error(&found, &exact) < 2e-6 + mean * 2e-7, "{hidden} {mean}");
            assert!(padded.chunks_exact(stride).all(|row| row[hidden..].iter().all(|&value| value == 0.0)));
        });
    }
}

#[test]
fn a_head_is_a_tanh_between_two_maps() {
    let mut random = random(8);
    let (pooler, weight) = (dense(&mut random, 64, 64), values(&mut random, 64, 1.0));
    let states = values(&mut random, 5 * 64, 2.0);
    let pooled = linear_reference(&states, &pooler);
    let dot =
        |row: &[f32]| std::iter::zip(row, &weight).map(|(x, w)| f64::from(x.tanh() * w)).sum::<f64>() as f32;
    let exact: Vec<f32> = pooled.chunks_exact(64).map(|row| dot(row) + 0.25).collect();
    on_every_processor!(|simd| {
        let mut logits = [0.0; 5];
        let head = Head::new(Some((&pooler, Activation::Tanh)), None, &weight, 0.25);
        head.logits(simd, &states, &mut HeadScratch::default(), &mut logits);
        assert!(error(&logits, &exact) < 3e-6);
    });
}
