//! Intel's AMX: tiles in hardware, from Sapphire Rapids.
//!
//! The compiler knows tile registers only as clobbers of an `asm!`, and keeps no values in them. So each block is one `asm!`.

use super::tiles::{Block, TILE, Tiles};
use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// CPUID leaf 7, EDX: AMX-BF16, AMX-TILE and AMX-INT8.
const FEATURES: u32 = 1 << 22 | 1 << 24 | 1 << 25;

/// Why a processor's tiles cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TilesMissing {
    /// The processor has none, or not both dtypes.
    Processor,
    /// Linux or a sandbox refused `arch_prctl(ARCH_REQ_XCOMP_PERM)` with this error number.
    Denied(i32),
}

/// Whether this process may use tiles; asks for the permission once. It holds for all threads.
pub fn tiles_permission() -> Result<(), TilesMissing> {
    static PERMISSION: OnceLock<Result<(), TilesMissing>> = OnceLock::new();
    *PERMISSION.get_or_init(|| {
        // Leaf 7 is there wherever AVX2 is.
        let has_leaf = is_x86_feature_detected!("avx2");
        let features = if has_leaf { __cpuid_count(7, 0).edx } else { 0 };
        if features & FEATURES == FEATURES { permission(request()) } else { Err(TilesMissing::Processor) }
    })
}

/// What a system call's result says.
fn permission(result: i64) -> Result<(), TilesMissing> {
    match i32::try_from(-result) {
        Ok(0) => Ok(()),
        Ok(number) => Err(TilesMissing::Denied(number)),
        Err(_) => Err(TilesMissing::Denied(i32::MAX)),
    }
}

/// `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`: zero, or a negative error number. Linux refuses where a
/// thread's alternate stack for signals is too small for the tiles; Rust's are as large as the kernel says.
#[cfg(target_os = "linux")]
fn request() -> i64 {
    let result: i64;
    // SAFETY: the call reads its two numbers and touches no memory of ours; `syscall` overwrites rcx and r11.
    unsafe {
        asm!("syscall", inlateout("rax") 158_i64 => result, in("rdi") 0x1023_u64, in("rsi") 18_u64,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// Other systems are not known to give tiles to programs.
#[cfg(not(target_os = "linux"))]
fn request() -> i64 {
    -38
}

/// The processor's tiles. Used only through a processor whose `detect` had the permission.
#[derive(Clone, Copy, Debug)]
pub struct HardwareTiles;

/// The calling thread's tiles, all configured as 16 rows of 64 bytes, released when it is dropped: a thread that is
/// switched has less to save then. It stays on its thread.
pub struct Session(PhantomData<*const ()>);

/// What `ldtilecfg` reads: palette 1, then bytes of a row from byte 16 on, and rows from byte 48 on.
#[repr(C, align(64))]
struct Configuration([u8; 64]);

static CONFIGURATION: Configuration = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = TILE as u8;
        tile += 1;
    }
    Configuration(bytes)
};

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: `Tiles::session` found the instructions; no block is under way, and nothing is kept in tiles.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// One block: `$rows` is `two` or `one` tile of rows, and `$fetch` the fetches of a step.
macro_rules! block {
    ($op:literal, two, $block:expr, [$($fetch:literal)*]) => {
        asm!(
            "tileloadd tmm0, [{from} + {from_stride}*1]",
            "tileloadd tmm1, [{from} + {from_stride}*1 + 64]",
            "lea {from}, [{from} + {from_stride}*8]",
            "lea {from}, [{from} + {from_stride}*8]",
            "tileloadd tmm2, [{from} + {from_stride}*1]",
            "tileloadd tmm3, [{from} + {from_stride}*1 + 64]",
            "2:",
            "tileloadd tmm4, [{a0} + {a_stride}*1]",
            "tileloadd tmm6, [{b0} + {b_stride}*1]",
            "tileloadd tmm7, [{b1} + {b_stride}*1]",
            concat!($op, " tmm0, tmm4, tmm6"),
            "tileloadd tmm5, [{a1} + {a_stride}*1]",
            concat!($op, " tmm1, tmm4, tmm7"),
            concat!($op, " tmm2, tmm5, tmm6"),
            concat!($op, " tmm3, tmm5, tmm7"),
            $($fetch,)*
            "/* {fetch} */",
            "add {a0}, 64",
            "add {a1}, 64",
            "lea {b0}, [{b0} + {b_stride}*8]",
            "lea {b1}, [{b1} + {b_stride}*8]",
            "lea {b0}, [{b0} + {b_stride}*8]",
            "lea {b1}, [{b1} + {b_stride}*8]",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {sums_stride}*1], tmm0",
            "tilestored [{sums} + {sums_stride}*1 + 64], tmm1",
            "lea {sums}, [{sums} + {sums_stride}*8]",
            "lea {sums}, [{sums} + {sums_stride}*8]",
            "tilestored [{sums} + {sums_stride}*1], tmm2",
            "tilestored [{sums} + {sums_stride}*1 + 64], tmm3",
            a0 = inout(reg) $block.a => _,
            a1 = inout(reg) $block.a.wrapping_add(TILE * $block.a_stride) => _,
            a_stride = in(reg) 4 * $block.a_stride,
            b0 = inout(reg) $block.b => _,
            b1 = inout(reg) $block.b.wrapping_add($block.b_apart) => _,
            b_stride = in(reg) 4 * $block.b_stride,
            from = inout(reg) $block.start => _,
            from_stride = in(reg) 4 * $block.start_stride,
            sums = inout(reg) $block.sums => _,
            sums_stride = in(reg) 4 * $block.sums_stride,
            steps = inout(reg) $block.steps => _,
            fetch = inout(reg) $block.fetch => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack))
    };
    ($op:literal, one, $block:expr, [$($fetch:literal)*]) => {
        asm!(
            "tileloadd tmm0, [{from} + {from_stride}*1]",
            "tileloadd tmm1, [{from} + {from_stride}*1 + 64]",
            "2:",
            "tileloadd tmm4, [{a0} + {a_stride}*1]",
            "tileloadd tmm6, [{b0} + {b_stride}*1]",
            "tileloadd tmm7, [{b1} + {b_stride}*1]",
            concat!($op, " tmm0, tmm4, tmm6"),
            concat!($op, " tmm1, tmm4, tmm7"),
            $($fetch,)*
            "/* {fetch} */",
            "add {a0}, 64",
            "lea {b0}, [{b0} + {b_stride}*8]",
            "lea {b1}, [{b1} + {b_stride}*8]",
            "lea {b0}, [{b0} + {b_stride}*8]",
            "lea {b1}, [{b1} + {b_stride}*8]",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {sums_stride}*1], tmm0",
            "tilestored [{sums} + {sums_stride}*1 + 64], tmm1",
            a0 = inout(reg) $block.a => _,
            a_stride = in(reg) 4 * $block.a_stride,
            b0 = inout(reg) $block.b => _,
            b1 = inout(reg) $block.b.wrapping_add($block.b_apart) => _,
            b_stride = in(reg) 4 * $block.b_stride,
            from = in(reg) $block.start,
            from_stride = in(reg) 4 * $block.start_stride,
            sums = in(reg) $block.sums,
            sums_stride = in(reg) 4 * $block.sums_stride,
            steps = inout(reg) $block.steps => _,
            fetch = inout(reg) $block.fetch => _,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack))
    };
}

/// The fetches that a step makes, at least as many as the block asks for.
macro_rules! with_fetches {
    ($op:literal, $rows:ident, $block:expr) => {
        match $block.fetch_lines {
            0 => block!($op, $rows, $block, []),
            1 | 2 => {
                block!($op, $rows, $block, ["prefetcht1 [{fetch}]" "prefetcht1 [{fetch} + 64]" "add {fetch}, 128"])
            }
            3 | 4 => block!($op, $rows, $block, [
                "prefetcht1 [{fetch}]" "prefetcht1 [{fetch} + 64]" "prefetcht1 [{fetch} + 128]"
                "prefetcht1 [{fetch} + 192]" "add {fetch}, 256"
            ]),
            5..=8 => block!($op, $rows, $block, [
                "prefetcht1 [{fetch}]" "prefetcht1 [{fetch} + 64]" "prefetcht1 [{fetch} + 128]"
                "prefetcht1 [{fetch} + 192]" "prefetcht1 [{fetch} + 256]" "prefetcht1 [{fetch} + 320]"
                "prefetcht1 [{fetch} + 384]" "prefetcht1 [{fetch} + 448]" "add {fetch}, 512"
            ]),
            _ => block!($op, $rows, $block, [
                "prefetcht1 [{fetch}]" "prefetcht1 [{fetch} + 64]" "prefetcht1 [{fetch} + 128]"
                "prefetcht1 [{fetch} + 192]" "prefetcht1 [{fetch} + 256]" "prefetcht1 [{fetch} + 320]"
                "prefetcht1 [{fetch} + 384]" "prefetcht1 [{fetch} + 448]" "prefetcht1 [{fetch} + 512]"
                "prefetcht1 [{fetch} + 576]" "prefetcht1 [{fetch} + 640]" "prefetcht1 [{fetch} + 704]"
                "prefetcht1 [{fetch} + 768]" "prefetcht1 [{fetch} + 832]" "prefetcht1 [{fetch} + 896]"
                "prefetcht1 [{fetch} + 960]" "add {fetch}, 1024"
            ]),
        }
    };
}

impl Tiles for HardwareTiles {
    const HERE: bool = true;
    type Session = Session;

    fn session() -> Session {
        assert!(
            tiles_permission().is_ok(),
            "a processor with tiles is found by `detect`, which has the permission"
        );
        // SAFETY: the process has the permission, and so the processor has the instruction.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, readonly, preserves_flags));
        }
        Session(PhantomData)
    }

    #[inline(always)]
    unsafe fn bf16(block: &Block) {
        // SAFETY: the caller promises the session, and all that the block names; `steps` is not zero. A fetch of an
        // address that is not there does nothing.
        unsafe {
            if block.rows > TILE {
                with_fetches!("tdpbf16ps", two, block);
            } else {
                with_fetches!("tdpbf16ps", one, block);
            }
        }
    }

    #[inline(always)]
    unsafe fn bytes(block: &Block) {
        // SAFETY: as for bf16.
        unsafe {
            if block.rows > TILE {
                with_fetches!("tdpbusd", two, block);
            } else {
                with_fetches!("tdpbusd", one, block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_permission_says_its_number() {
        assert_eq!(permission(0), Ok(()));
        assert_eq!(permission(-1), Err(TilesMissing::Denied(1)));
        assert_eq!(permission(-95), Err(TilesMissing::Denied(95)));
    }
}
