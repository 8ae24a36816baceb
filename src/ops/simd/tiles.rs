//! Products on tiles: up to 16 rows of 64 bytes each, in eight registers. A block multiplies 32 rows by 32
//! columns, two by two tiles, so that each tile that is read serves two products.
//!
//! [`EmulatedTiles`] does in plain Rust what the hardware does, in the same order, so that packing and order are
//! tested on machines without tiles.

use half::bf16;

/// Rows of a tile, and words of a row: what a step takes along the inputs.
pub(in crate::ops) const TILE: usize = 16;
/// Rows and columns of a block.
pub(in crate::ops) const BLOCK: usize = 2 * TILE;

/// The operands of a block, in words of 32 bits.
#[derive(Clone, Copy)]
pub struct Block {
    /// Rows that count, 1 to 32; those beyond, up to a whole tile, are computed and mean nothing.
    pub rows: usize,
    /// Steps along the inputs, 16 words each, at least one.
    pub steps: usize,
    /// The rows, `a_stride` words apart.
    pub a: *const u32,
    /// Words from row to row.
    pub a_stride: usize,
    /// A tile of 16 words of the inputs by 16 columns, row by row, and the next step's rows behind it.
    pub b: *const u32,
    /// Words from row to row.
    pub b_stride: usize,
    /// Words from the first tile to that of the next 16 columns.
    pub b_apart: usize,
    /// What sums start from: 32 words for all rows, or rows of 32 words.
    pub start: *const u32,
    /// Words from row to row of `start`; zero where all rows start alike.
    pub start_stride: usize,
    /// Where the sums go, rows of 32 words.
    pub sums: *mut u32,
    /// Words from row to row.
    pub sums_stride: usize,
    /// Memory that is needed soon, fetched into the second-level cache: `fetch_lines` cache lines a step.
    pub fetch: *const u32,
    /// None, or at most 16.
    pub fetch_lines: usize,
}

impl Block {
    /// Rows that are read and written: whole tiles.
    pub fn whole_rows(&self) -> usize {
        if self.rows > TILE { BLOCK } else { TILE }
    }
}

/// A processor's tiles.
pub trait Tiles {
    /// Whether there are any.
    const HERE: bool;
    /// Keeps the calling thread's tiles configured while it lives.
    type Session;
    /// Configures the calling thread's tiles.
    fn session() -> Self::Session;
    /// Sums and products of bf16: in each step the products of lower halves of words and those of upper halves are
    /// summed apart, in order, then both to each other and to what there was. Subnormals count as zero.
    ///
    /// # Safety
    /// A [`Tiles::session`] of this thread lives; the block's rows (whole tiles of them), columns, starts and
    /// places for sums are there, in all steps.
    unsafe fn bf16(block: &Block);
    /// Exact sums of products of unsigned bytes of `a` and signed ones of `b`.
    ///
    /// # Safety
    /// As for [`Tiles::bf16`].
    unsafe fn bytes(block: &Block);
}

/// No tiles.
#[derive(Clone, Copy, Debug)]
pub struct NoTiles;

impl Tiles for NoTiles {
    const HERE: bool = false;
    type Session = ();
    fn session() {}
    unsafe fn bf16(_: &Block) {
        unreachable!("nobody asks for tiles where there are none")
    }
    unsafe fn bytes(_: &Block) {
        unreachable!("nobody asks for tiles where there are none")
    }
}

/// What tiles do, in plain Rust.
#[derive(Clone, Copy, Debug)]
pub struct EmulatedTiles;

impl Tiles for EmulatedTiles {
    const HERE: bool = true;
    type Session = ();
    fn session() {}
    unsafe fn bf16(block: &Block) {
        // SAFETY: the caller promises the block.
        unsafe {
            emulate(block, |sum, a, b| {
                let (mut even, mut odd) = (0.0, 0.0);
                for (&a, &b) in a.iter().zip(b) {
                    even = multiply_add(lower(a), lower(b), even);
                    odd = multiply_add(lower(a >> 16), lower(b >> 16), odd);
                }
                flushed(f32::from_bits(sum) + flushed(even + odd)).to_bits()
            });
        }
    }
    unsafe fn bytes(block: &Block) {
        let dot = |(a, b): (&u32, &u32)| -> i32 {
            let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
            a.iter().zip(b).map(|(&a, b)| i32::from(a) * i32::from(b.cast_signed())).sum()
        };
        // SAFETY: the caller promises the block.
        unsafe {
            emulate(block, |sum, a, b| {
                let products: i32 = a.iter().zip(b).map(dot).sum();
                sum.cast_signed().wrapping_add(products).cast_unsigned()
            });
        }
    }
}

fn flushed(value: f32) -> f32 {
    if value.is_subnormal() { 0.0_f32.copysign(value) } else { value }
}

fn lower(word: u32) -> f64 {
    f64::from(flushed(bf16::from_bits(word as u16).to_f32()))
}

/// a b + c, rounded once: the product of two bf16 has 16 bits, and its sum with an f32 is exact in f64 unless one
/// is 2^29 times the other.
fn multiply_add(a: f64, b: f64, c: f32) -> f32 {
    flushed((a * b + f64::from(c)) as f32)
}

/// Runs one step after the other: `step(sum, 16 words of a row, 16 words of a column)`.
///
/// # Safety
/// As for [`Tiles::bf16`].
unsafe fn emulate(block: &Block, step: impl Fn(u32, &[u32; TILE], &[u32; TILE]) -> u32) {
    let whole = block.whole_rows();
    let mut sums = [[0; BLOCK]; BLOCK];
    // SAFETY: the caller promises all that the block names.
    unsafe {
        for (row, sums) in sums.iter_mut().enumerate().take(whole) {
            let start = block.start.add(row * block.start_stride);
            (0..BLOCK).for_each(|column| sums[column] = *start.add(column));
        }
        for number in 0..block.steps {
            for column in 0..BLOCK {
                let b = block.b.add(column / TILE * block.b_apart + column % TILE);
                let b: [u32; TILE] = std::array::from_fn(|i| *b.add((number * TILE + i) * block.b_stride));
                for (row, sums) in sums.iter_mut().enumerate().take(whole) {
                    let a = block.a.add(row * block.a_stride + number * TILE).cast::<[u32; TILE]>();
                    sums[column] = step(sums[column], &a.read_unaligned(), &b);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate().take(whole) {
            block.sums.add(row * block.sums_stride).cast::<[u32; BLOCK]>().write_unaligned(*sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt;
    use rand_pcg::Pcg64;

    /// A block over random operands: sums by `run`.
    fn sums(
        seed: u64,
        (rows, steps): (usize, usize),
        words: [&dyn Fn(&mut Pcg64) -> u32; 2],
        run: unsafe fn(&Block),
    ) -> Vec<u32> {
        let mut random = Pcg64::new(seed.into(), 7);
        let mut many = |count: usize, word: &dyn Fn(&mut Pcg64) -> u32| -> Vec<u32> {
            (0..count).map(|_| word(&mut random)).collect()
        };
        // Rows and columns lie wider apart than they must, and the second tile of columns somewhere else.
        let (a_stride, b_stride) = (steps * TILE + 5, TILE + 3);
        let (a, b) = (many(BLOCK * a_stride, words[0]), many(2 * steps * TILE * b_stride, words[1]));
        let start = many(BLOCK, &|random| random.random_range(-9.0_f32..9.0).to_bits());
        let mut sums = vec![0; BLOCK * BLOCK];
        let block = Block {
            rows,
            steps,
            a: a.as_ptr(),
            a_stride,
            b: b.as_ptr(),
            b_stride,
            b_apart: steps * TILE * b_stride,
            start: start.as_ptr(),
            start_stride: 0,
            sums: sums.as_mut_ptr(),
            sums_stride: BLOCK,
            fetch: std::ptr::null(),
            fetch_lines: seed as usize % 17,
        };
        // SAFETY: all that the block names is there; the caller keeps a session.
        unsafe { run(&block) };
        // Again from there, as a part of the inputs would.
        let again = Block { start: block.sums, start_stride: BLOCK, ..block };
        // SAFETY: as before.
        unsafe { run(&again) };
        sums.truncate(rows * BLOCK);
        sums
    }

    #[cfg(target_arch = "x86_64")]
    fn bf16_pair(random: &mut Pcg64) -> u32 {
        let mut half = || {
            let magnitude = 2.0_f32.powi(random.random_range(-6..6));
            u32::from(bf16::from_f32(magnitude * random.random_range(-1.0_f32..1.0)).to_bits())
        };
        half() | half() << 16
    }

    #[test]
    fn emulated_tiles_give_the_products_in_order() {
        for (seed, rows, steps) in [(1, 1, 1), (2, 16, 3), (3, 17, 2), (4, 32, 5)] {
            let ones = |_: &mut Pcg64| 0x0101_0101;
            let bytes = sums(seed, (rows, steps), [&ones, &ones], EmulatedTiles::bytes);
            let halves = sums(seed, (rows, steps), [&|_| 0x3f80_3f80, &|_| 0x3f80_3f80], EmulatedTiles::bf16);
            for (byte, half) in bytes.iter().zip(&halves) {
                // Both began with the same random float.
                let (start, products) =
                    (byte.wrapping_sub((2 * steps * TILE * 4) as u32), (2 * steps * TILE * 2) as f32);
                let expected = f32::from_bits(start) + products;
                assert!((f32::from_bits(*half) - expected).abs() < 1e-3 * products);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn hardware_tiles_are_the_emulated_ones_bit_for_bit() {
        use super::super::amx::{HardwareTiles, tiles_permission};
        if let Err(missing) = tiles_permission() {
            eprintln!("SKIPPED: no tiles here, {missing:?}");
            return;
        }
        let session = HardwareTiles::session();
        for seed in 0..60 {
            let shape = [(1, 1), (16, 2), (17, 1), (31, 7), (32, 24)][seed as usize % 5];
            let word = |random: &mut Pcg64| random.random::<u32>();
            let (by, plain) =
                (HardwareTiles::bytes as unsafe fn(&Block), EmulatedTiles::bytes as unsafe fn(&Block));
            assert_eq!(sums(seed, shape, [&word, &word], by), sums(seed, shape, [&word, &word], plain));
            let (by, plain) =
                (HardwareTiles::bf16 as unsafe fn(&Block), EmulatedTiles::bf16 as unsafe fn(&Block));
            assert_eq!(
                sums(seed, shape, [&bf16_pair, &bf16_pair], by),
                sums(seed, shape, [&bf16_pair, &bf16_pair], plain)
            );
            // Subnormals count as zero.
            let tiny = |random: &mut Pcg64| random.random::<u32>() & 0x807f_807f;
            assert_eq!(
                sums(seed, shape, [&bf16_pair, &tiny], by),
                sums(seed, shape, [&bf16_pair, &tiny], plain)
            );
        }
        drop(session);
    }
}
