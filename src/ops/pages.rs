//! Huge pages for weights: with pages of 4 KB each panel would need its own entries in the processor's tables.

/// Requests huge pages for memory that has not been written yet. If the system does not support the request or refuses
/// it, pages stay small.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(super) fn ask_for_huge_pages(memory: *const u8, bytes: usize) {
    const PAGE: usize = 4096;
    const MADVISE: u64 = 28;
    const MADV_HUGEPAGE: u64 = 14;
    let first = memory.addr().next_multiple_of(PAGE);
    let end = (memory.addr() + bytes) / PAGE * PAGE;
    if end <= first {
        return;
    }
    // SAFETY: this advice changes how memory is mapped and not what is in it; `syscall` overwrites rcx and r11.
    unsafe {
        std::arch::asm!("syscall", inlateout("rax") MADVISE => _, in("rdi") first, in("rsi") end - first,
            in("rdx") MADV_HUGEPAGE, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
}

/// Elsewhere the system decides.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub(super) fn ask_for_huge_pages(_memory: *const u8, _bytes: usize) {}
