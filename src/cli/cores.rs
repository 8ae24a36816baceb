//! How many threads compute at once: the cores that this process may use, as the system and a container's quota say.

use std::collections::BTreeSet;

/// Threads of a lane, where the configuration does not say. Two hardware threads of a core share its arithmetic units, so
/// that one computes; one hardware thread is left to connections. A container's quota (`cpu.max`) counts as cores.
pub(super) fn compute_threads() -> usize {
    let logical = std::thread::available_parallelism().map_or(1, usize::from);
    let allowed = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let siblings = |cpu: usize| {
        std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"))
            .ok()
    };
    threads(logical, physical(&allowed, siblings))
}

/// At most one for each physical core, where these are known, and one less than there are hardware threads.
fn threads(logical: usize, physical: Option<usize>) -> usize {
    physical.unwrap_or(logical).min(logical.saturating_sub(1)).max(1)
}

/// Distinct cores among the hardware threads that `/proc/self/status` allows; none where the system does not say.
fn physical(status: &str, siblings: impl Fn(usize) -> Option<String>) -> Option<usize> {
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut cores = BTreeSet::new();
    for range in allowed.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        for cpu in first.parse::<usize>().ok()?..=last.parse().ok()? {
            cores.insert(siblings(cpu)?);
        }
    }
    Some(cores.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_threads_of_a_core_count_once() {
        // Core 0 is threads 0 and 4, and so on.
        let paired = |cpu: usize| (cpu < 8).then(|| format!("{},{}\n", cpu % 4, cpu % 4 + 4));
        let alone = |cpu: usize| Some(format!("{cpu}\n"));
        let status = |list: &str| format!("Name:\tpodium\nCpus_allowed_list:\t{list}\n");
        assert_eq!(physical(&status("0-7"), paired), Some(4));
        assert_eq!(physical(&status("0-1,4"), paired), Some(2));
        assert_eq!(physical(&status("3"), paired), Some(1));
        assert_eq!(physical(&status("0-7"), alone), Some(8));
        assert_eq!(physical(&status("0-8"), paired), None);
        assert_eq!(physical("Name:\tpodium\n", alone), None);
        assert_eq!(physical(&status("a-b"), alone), None);
    }

    #[test]
    fn a_thread_is_left_to_connections_and_a_quota_counts() {
        for (logical, physical, expected) in [
            (8, Some(4), 4),
            (8, Some(8), 7),
            (2, Some(4), 1),
            (1, Some(1), 1),
            (16, None, 15),
            (2, Some(1), 1),
        ] {
            assert_eq!(threads(logical, physical), expected, "{logical} {physical:?}");
        }
    }
}
