//! How much memory this process may still take, as the system, a container and `ulimit` limit it.

use rlimit::{INFINITY, Resource};
use std::fs::read_to_string;
use std::path::Path;

/// What the system says of memory.
#[derive(Default)]
struct Told {
    /// `/proc/meminfo`.
    meminfo: String,
    /// Each control group around the process.
    groups: Vec<Group>,
    /// `/proc/self/status`.
    status: String,
    /// The limits of a row of `status`, in bytes.
    limits: Vec<(&'static str, u64)>,
}

/// A control group's files.
#[derive(Default)]
struct Group {
    max: String,
    current: String,
    stat: String,
}

/// What `ulimit` limits, with the row of `/proc/self/status` that says how much of it is taken: all memory that is mapped
/// (`-v`), and that of it which is the process's own to write (`-d`).
const LIMITED: [(&str, Resource); 2] = [("VmSize:", Resource::AS), ("VmData:", Resource::DATA)];

/// Bytes that can be taken without swapping and within the limits of all control groups and of `ulimit`; none where the
/// system does not say.
pub(super) fn available() -> Option<u64> {
    let limit = |(row, resource): (_, Resource)| {
        Some((row, resource.get_soft().ok().filter(|&soft| soft < INFINITY)?))
    };
    let told = Told {
        meminfo: read_to_string("/proc/meminfo").ok()?,
        groups: groups(Path::new("/sys/fs/cgroup"), &read_to_string("/proc/self/cgroup").unwrap_or_default()),
        status: read_to_string("/proc/self/status").unwrap_or_default(),
        limits: LIMITED.into_iter().filter_map(limit).collect(),
    };
    of(&told)
}

/// The control groups that limit the memory of a process, from the innermost to the root, by its `/proc/self/cgroup` and
/// the files below a folder.
fn groups(root: &Path, own: &str) -> Vec<Group> {
    // A hierarchy's number, its controllers and the process's group in it; in version 2 there is one, without a list.
    let mut found = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let (folder, files) = match controllers {
            "" => (root.to_owned(), ["memory.max", "memory.current"]),
            _ if controllers.split(',').any(|one| one == "memory") => {
                (root.join("memory"), ["memory.limit_in_bytes", "memory.usage_in_bytes"])
            }
            _ => continue,
        };
        // In a container the path may be that of the host, where the files here begin at the container's own group.
        let ends = group.match_indices('/').map(|(place, _)| place).chain([group.len()]);
        let mut paths: Vec<&str> = ends.map(|end| group[..end].trim_matches('/')).collect();
        paths.dedup();
        let read = |path: &str, file: &str| read_to_string(folder.join(path).join(file)).ok();
        found.extend(paths.into_iter().rev().filter_map(|path| {
            let [max, current] = files.map(|file| read(path, file));
            Some(Group { max: max?, current: current?, stat: read(path, "memory.stat").unwrap_or_default() })
        }));
    }
    found
}

/// The number in a row that begins with a name.
fn row(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(char::is_whitespace))?;
    rest.trim().parse().ok()
}

/// The same in bytes, where the row counts kilobytes.
fn row_of_kilobytes(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(1_024 * rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?)
}

impl Group {
    /// Bytes that its processes may still take.
    fn left(&self) -> Option<u64> {
        // Without a limit it is `max`, in version 1 more than any machine has.
        let number = |text: &str| text.trim().parse::<u64>().ok();
        let (max, current) = (number(&self.max)?, number(&self.current)?);
        // Pages of files are given back when memory is needed; a model's file was just read. In version 1 the rows with
        // `total_` count the groups below too, as the other files do.
        let pages = |name: &str| {
            row(&self.stat, &format!("total_{name}")).or_else(|| row(&self.stat, name)).unwrap_or(0)
        };
        let used = current.saturating_sub(pages("inactive_file") + pages("active_file"));
        Some(max.saturating_sub(used))
    }
}

fn of(told: &Told) -> Option<u64> {
    let free = row_of_kilobytes(&told.meminfo, "MemAvailable:")?;
    let limited = told
        .limits
        .iter()
        .filter_map(|(row, limit)| Some(limit.saturating_sub(row_of_kilobytes(&told.status, row)?)));
    Some(told.groups.iter().filter_map(Group::left).chain(limited).fold(free, u64::min))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       24683656 kB\nMemFree:        1 kB\nMemAvailable:   2000000 kB\n";

    fn with(groups: &[[&str; 3]]) -> Option<u64> {
        let group = |[max, current, stat]: &[&str; 3]| Group {
            max: (*max).to_owned(),
            current: (*current).to_owned(),
            stat: (*stat).to_owned(),
        };
        let groups = groups.iter().map(group).collect();
        of(&Told { meminfo: MEMINFO.to_owned(), groups, ..Told::default() })
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
        let odd = |meminfo: &str| of(&Told { meminfo: meminfo.to_owned(), ..Told::default() });
        assert_eq!((odd("MemAvailable: many kB\n"), odd("MemAvailable: 5 MB\n")), (None, None));
        assert_eq!(with(&[["?", "?", "?"]]), Some(2_000_000 * 1_024));
    }

    #[test]
    fn a_limit_of_ulimit_counts_less_what_is_taken() {
        let with = |limits: &[(&'static str, u64)]| {
            let (meminfo, status) =
                (MEMINFO.to_owned(), "VmPeak:\t 9 kB\nVmSize:\t 300 kB\nVmData:\t 20 kB\n".to_owned());
            of(&Told { meminfo, status, limits: limits.to_vec(), ..Told::default() })
        };
        let kilobytes = |count: u64| Some(1_024 * count);
        assert_eq!(with(&[]), kilobytes(2_000_000));
        assert_eq!(with(&[("VmSize:", 1_000 * 1_024)]), kilobytes(700));
        assert_eq!(with(&[("VmSize:", 1_000 * 1_024), ("VmData:", 30 * 1_024)]), kilobytes(10));
        assert_eq!(with(&[("VmSize:", 1_024)]), Some(0));
        assert_eq!(with(&[("VmOther:", 1_024)]), kilobytes(2_000_000));
    }

    #[test]
    fn groups_are_found_in_both_versions() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, content: &str| {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        };
        let left =
            |own: &str| -> Vec<Option<u64>> { groups(root.path(), own).iter().map(Group::left).collect() };
        assert_eq!(left("0::/a/b\n"), []);
        write("a/b/memory.max", "900\n");
        write("a/b/memory.current", "850\n");
        write("a/memory.max", "max\n");
        write("a/memory.current", "850\n");
        assert_eq!(left("0::/a/b\n"), [Some(50), None]);
        assert_eq!(left("0::/\n"), []);
        // Version 1: the path of the host is not there, and the container's own group is the root.
        write("memory/memory.limit_in_bytes", "1000\n");
        write("memory/memory.usage_in_bytes", "700\n");
        write(
            "memory/memory.stat",
            "inactive_file 1\nactive_file 2\ntotal_inactive_file 100\ntotal_active_file 200\n",
        );
        let own = "9:cpu,cpuacct:/x\n8:memory:/docker/0123\n1:name=systemd:/x\n0::/x\n";
        assert_eq!(left(own), [Some(600)]);
        write("memory/a/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/a/memory.usage_in_bytes", "712\n");
        assert_eq!(left("5:hugetlb,memory:/a\n"), [Some(9_223_372_036_854_771_000), Some(600)]);
    }
}
