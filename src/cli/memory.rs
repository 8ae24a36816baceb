//! How much memory this process may still take, as the system and a container's limit say.

use std::fs::read_to_string;

/// What the system says of memory.
#[derive(Default)]
struct Told {
    /// `/proc/meminfo`.
    meminfo: String,
    /// `memory.max`, `memory.current` and `memory.stat` of each control group around the process (version 2).
    groups: Vec<[String; 3]>,
}

/// Bytes that can be taken without swapping and within the limits of all control groups; none where the system does not say.
pub(super) fn available() -> Option<u64> {
    let told = Told { meminfo: read_to_string("/proc/meminfo").ok()?, groups: groups() };
    of(&told)
}

/// The control groups of the process, from the innermost to the root.
fn groups() -> Vec<[String; 3]> {
    let own = read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(own) = own.lines().find_map(|line| line.strip_prefix("0::")) else { return Vec::new() };
    let read = |group: &str, file: &str| read_to_string(format!("/sys/fs/cgroup{group}/{file}")).ok();
    let group = |group: &str| -> Option<[String; 3]> {
        let stat = read(group, "memory.stat").unwrap_or_default();
        Some([read(group, "memory.max")?, read(group, "memory.current")?, stat])
    };
    let ends = own.match_indices('/').map(|(place, _)| place).chain([own.len()]);
    let mut paths: Vec<&str> = ends.map(|end| own[..end].trim_end_matches('/')).collect();
    paths.dedup();
    paths.into_iter().rev().filter_map(group).collect()
}

fn of(told: &Told) -> Option<u64> {
    let free = told.meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let free = 1_024 * free.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
    let left = |[max, current, stat]: &[String; 3]| -> Option<u64> {
        // Without a limit it is `max`.
        let (max, current) = (max.trim().parse::<u64>().ok()?, current.trim().parse::<u64>().ok()?);
        // Pages of files are given back when memory is needed; a model's file was just read.
        let row = |name: &str| {
            let rest = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            rest.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        let used = current.saturating_sub(row("inactive_file") + row("active_file"));
        Some(max.saturating_sub(used))
    };
    Some(told.groups.iter().filter_map(left).fold(free, u64::min))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       24683656 kB\nMemFree:        1 kB\nMemAvailable:   2000000 kB\n";

    fn with(groups: &[[&str; 3]]) -> Option<u64> {
        let groups = groups.iter().map(|group| group.map(str::to_owned)).collect();
        of(&Told { meminfo: MEMINFO.to_owned(), groups })
    }

    #[test]
    fn the_least_of_the_system_and_all_groups_is_available() {
        let system = 2_000_000 * 1_024;
        assert_eq!(with(&[]), Some(system));
        assert_eq!(with(&[["max\n", "5\n", ""]]), Some(system));
        assert_eq!(with(&[["1000\n", "400\n", ""], ["900\n", "850\n", ""]]), Some(50));
        assert_eq!(with(&[["9000000000000\n", "400\n", ""]]), Some(system));
    }

    #[test]
    fn pages_of_files_are_not_in_use() {
        let stat = "anon 100\nfile 800\ninactive_file 500\nactive_file 200\nshmem 100\n";
        assert_eq!(with(&[["1000\n", "900\n", stat]]), Some(800));
        // More than is in use, as the files of a busy system may say.
        assert_eq!(with(&[["1000\n", "100\n", stat]]), Some(1_000));
        assert_eq!(with(&[["1000\n", "1200\n", ""]]), Some(0));
    }

    #[test]
    fn what_the_system_does_not_say_is_no_limit() {
        assert_eq!(of(&Told::default()), None);
        let odd = |meminfo: &str| of(&Told { meminfo: meminfo.to_owned(), groups: Vec::new() });
        assert_eq!((odd("MemAvailable: many kB\n"), odd("MemAvailable: 5 MB\n")), (None, None));
        assert_eq!(with(&[["?", "?", "?"]]), Some(2_000_000 * 1_024));
    }
}
