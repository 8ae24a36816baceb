//! How the reference treats the places of tokens: rotary positions, relative ones, and masks.

use super::plan::{Reach, Relative, Rope};
use candle_core::{Device, Result, Tensor};

/// What relative positions add to the scores of a sequence, `[heads, length, length]`. Queries and keys are `[heads, length,
/// head_dim]`, and `rows` the table of positions as queries and as keys, `[rows, heads x head_dim]`.
pub(super) fn relative_scores(
    [query, key]: [&Tensor; 2],
    rows: &[Tensor; 2],
    shape: &Relative,
) -> Result<Tensor> {
    let (heads, length, size) = query.dims3()?;
    // `[heads, head_dim, rows]`
    let by_heads =
        |rows: &Tensor| rows.reshape((rows.dim(0)?, heads, size))?.permute((1, 2, 0))?.contiguous();
    let places = (0..length).flat_map(|query| (0..length).map(move |key| (query, key)));
    let places: Vec<u32> = places.map(|(query, key)| shape.row(query, key) as u32).collect();
    let places = Tensor::from_vec(places, (1, length, length), &Device::Cpu)?;
    let places = places.expand((heads, length, length))?.contiguous()?;
    let of_queries = query.matmul(&by_heads(&rows[1])?)?.gather(&places, 2)?;
    let turned = places.transpose(1, 2)?.contiguous()?;
    let of_keys = key.matmul(&by_heads(&rows[0])?)?.gather(&turned, 2)?.transpose(1, 2)?;
    of_queries + of_keys
}

/// Turns `states: [heads, length, head_dim]` by their places. Angles are in f32, as in training.
pub(super) fn rotate(states: &Tensor, rope: Rope) -> Result<Tensor> {
    let (_, length, size) = states.dims3()?;
    let half = size / 2;
    let frequencies = rope.frequencies(size);
    let angles =
        (0..length).flat_map(|place| frequencies.iter().map(move |frequency| place as f32 * frequency));
    let angles = Tensor::from_vec(angles.collect::<Vec<f32>>(), (length, half), &Device::Cpu)?;
    let (sin, cos) = (angles.sin()?, angles.cos()?);
    let (first, second) = (states.narrow(2, 0, half)?, states.narrow(2, half, half)?);
    let turned_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
    let turned_second = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
    Tensor::cat(&[turned_first, turned_second], 2)
}

/// `[heads, length, head_dim]`, each head `times` times in a row.
pub(super) fn repeat(states: &Tensor, times: usize) -> Result<Tensor> {
    let (heads, length, size) = states.dims3()?;
    let all = states.unsqueeze(1)?.expand((heads, times, length, size))?;
    all.reshape((heads * times, length, size))
}

/// Added to scores, `[length, length]`: minus infinity where a query does not see a key.
pub(super) fn mask(reach: Reach, length: usize) -> Result<Option<Tensor>> {
    let sees = |query: usize, key: usize| match reach {
        Reach::All => true,
        Reach::Causal => key <= query,
        Reach::Window(places) => query.abs_diff(key) <= places,
    };
    if reach == Reach::All {
        return Ok(None);
    }
    let places = (0..length).flat_map(|query| (0..length).map(move |key| (query, key)));
    let values: Vec<f32> =
        places.map(|(query, key)| if sees(query, key) { 0.0 } else { f32::NEG_INFINITY }).collect();
    Tensor::from_vec(values, (length, length), &Device::Cpu).map(Some)
}
