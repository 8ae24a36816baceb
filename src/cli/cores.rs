//! The cores that lanes compute on: those that this process may use, as the system and a container's quota say. A lane stays
//! within a NUMA node, and may be pinned to some of its cores.

use crate::base::Tier;
use std::collections::BTreeMap;
use std::path::Path;

/// The niceness of threads that load a model beside those that serve: they get about a tenth of what others get.
const LOADING_NICE: i32 = 10;

/// A tier's lanes on the CPU and the threads of each, where the configuration does not say. Two hardware threads of a core
/// share its arithmetic units, so that one computes; one hardware thread is left to connections. A container's quota
/// (`cpu.max`) counts as cores. A lane has no more threads than a NUMA node has cores, and where one lane cannot use all of
/// them there are several.
pub(super) fn lanes_and_threads(lanes: Option<usize>, threads: Option<usize>) -> (usize, usize) {
    let logical = std::thread::available_parallelism().map_or(1, usize::from);
    let nodes = nodes_here().map(|nodes| nodes.iter().map(Vec::len).collect::<Vec<_>>());
    shared_out(lanes, threads, (logical, nodes.as_deref()))
}

/// At most one thread for each physical core, where these are known for each node, and one less than there are hardware
/// threads; all lanes together have no more, if each has one.
fn shared_out(
    lanes: Option<usize>,
    threads: Option<usize>,
    (logical, nodes): (usize, Option<&[usize]>),
) -> (usize, usize) {
    let physical = nodes.map_or(logical, |nodes| nodes.iter().sum());
    let all = physical.min(logical.saturating_sub(1)).max(1);
    let largest = nodes.and_then(|nodes| nodes.iter().copied().max()).unwrap_or(all).min(all);
    let lanes = lanes.unwrap_or_else(|| if threads.is_some() { 1 } else { all.div_ceil(largest) });
    (lanes, threads.unwrap_or_else(|| (all / lanes).clamp(1, largest)))
}

/// For each lane of a tier the hardware threads that it is pinned to, each on another physical core and all in one NUMA node
/// where they fit in one. The primary's lanes have the first cores of the nodes and the fallback's the last ones, so that the
/// tiers share cores only where there are too few for both.
pub(super) fn of_lanes(tier: Tier, lanes: usize, threads: usize) -> Result<Vec<Vec<usize>>, String> {
    let nodes = nodes_here().ok_or("pin: the system does not say which cores this process may use")?;
    let first = |core: Vec<usize>| core[0];
    let nodes = nodes.into_iter().map(|cores| cores.into_iter().map(first).collect()).collect();
    shares(nodes, tier, lanes, threads)
}

fn shares(
    mut nodes: Vec<Vec<usize>>,
    tier: Tier,
    lanes: usize,
    threads: usize,
) -> Result<Vec<Vec<usize>>, String> {
    let (needed, here) = (lanes * threads, nodes.iter().map(Vec::len).sum::<usize>());
    if needed > here {
        return Err(format!(
            "pin: {lanes} lane(s) of {threads} thread(s) need {needed} physical cores, and {here} can be used"
        ));
    }
    if tier == Tier::Fallback {
        nodes.reverse();
        nodes.iter_mut().for_each(|cores| cores.reverse());
    }
    let count = nodes.len();
    let lane = |number: usize| {
        // Lanes have the nodes in turn, as far as they fit.
        let fitting =
            (number..number + count).map(|node| node % count).find(|&node| nodes[node].len() >= threads);
        if let Some(node) = fitting {
            return nodes[node].drain(..threads).collect();
        }
        let mut left = threads;
        let mut taken = Vec::new();
        for cores in &mut nodes {
            let part = left.min(cores.len());
            taken.extend(cores.drain(..part));
            left -= part;
        }
        taken
    };
    Ok((0..lanes).map(lane).collect())
}

/// For each lane that is not pinned the hardware threads of the NUMA node on which it stays; none where the machine has one
/// node, or where lanes are fewer than nodes: then the system moves them to idle cores of any node.
pub(super) fn nodes_of_lanes(lanes: usize, threads: usize) -> Option<Vec<Vec<usize>>> {
    in_nodes(&nodes_here()?, lanes, threads)
}

fn in_nodes(nodes: &[Vec<Vec<usize>>], lanes: usize, threads: usize) -> Option<Vec<Vec<usize>>> {
    let fit = nodes.iter().all(|cores| cores.len() >= threads);
    (nodes.len() > 1 && lanes >= nodes.len() && fit)
        .then(|| (0..lanes).map(|lane| nodes[lane % nodes.len()].concat()).collect())
}

/// Pins the calling thread to hardware threads. Threads that it starts from now on are pinned to them too.
#[cfg(target_os = "linux")]
pub(super) fn pin(to: &[usize]) -> Result<(), String> {
    use rustix::thread::{CpuSet, sched_setaffinity};
    let mut set = CpuSet::new();
    to.iter().filter(|&&cpu| cpu < CpuSet::MAX_CPU).for_each(|&cpu| set.set(cpu));
    sched_setaffinity(None, &set).map_err(|error| format!("pin: the hardware threads {to:?}: {error}"))
}

/// Elsewhere the cores are not known.
#[cfg(not(target_os = "linux"))]
pub(super) fn pin(_to: &[usize]) -> Result<(), String> {
    Err("pin: only Linux pins threads".to_owned())
}

/// Gives the calling thread, and those that it starts from now on, less of the processor than others want.
pub(super) fn yield_to_others() {
    #[cfg(target_os = "linux")]
    if rustix::process::getpriority_process(None).is_ok_and(|nice| nice < LOADING_NICE) {
        let _ = rustix::process::setpriority_process(None, LOADING_NICE);
    }
}

/// The hardware threads of each physical core of each NUMA node that this process may use; none where the system does not
/// say.
fn nodes_here() -> Option<Vec<Vec<Vec<usize>>>> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    nodes(&status, Path::new("/sys/devices/system"))
}

/// Nodes and cores in the order of their first hardware threads, of those that `/proc/self/status` allows. A system without
/// NUMA has one node.
fn nodes(status: &str, system: &Path) -> Option<Vec<Vec<Vec<usize>>>> {
    let read = |file: String| std::fs::read_to_string(system.join(file)).ok();
    let mut node_of = BTreeMap::new();
    for entry in std::fs::read_dir(system.join("node")).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let Some(number) = name.strip_prefix("node").and_then(|number| number.parse::<usize>().ok()) else {
            continue;
        };
        let list = read(format!("node/{name}/cpulist")).unwrap_or_default();
        node_of.extend(listed(&list).unwrap_or_default().into_iter().map(|cpu| (cpu, number)));
    }
    let (mut nodes, mut places) = (Vec::<Vec<Vec<usize>>>::new(), BTreeMap::new());
    let mut node_places = BTreeMap::new();
    for cpu in allowed(status)? {
        let siblings = read(format!("cpu/cpu{cpu}/topology/thread_siblings_list"))?;
        let node = *node_places.entry(node_of.get(&cpu).copied()).or_insert_with(|| {
            nodes.push(Vec::new());
            nodes.len() - 1
        });
        let core = *places.entry((node, siblings)).or_insert_with(|| {
            nodes[node].push(Vec::new());
            nodes[node].len() - 1
        });
        nodes[node][core].push(cpu);
    }
    Some(nodes)
}

/// The hardware threads that `/proc/self/status` allows.
fn allowed(status: &str) -> Option<Vec<usize>> {
    listed(status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?)
}

/// The numbers of a list such as `0-3,8`.
fn listed(list: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        all.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system with these cores on each of its nodes, as `/sys/devices/system` describes it.
    fn system(nodes: &[&[&str]]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let write = |file: String, text: String| {
            let file = folder.path().join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text + "\n").unwrap();
        };
        for (node, cores) in nodes.iter().enumerate() {
            write(format!("node/node{node}/cpulist"), cores.join(","));
            for core in *cores {
                for cpu in listed(core).unwrap() {
                    write(format!("cpu/cpu{cpu}/topology/thread_siblings_list"), (*core).to_owned());
                }
            }
        }
        write("node/online".to_owned(), format!("0-{}", nodes.len()));
        folder
    }

    fn status(list: &str) -> String {
        format!("Name:\tpodium\nCpus_allowed_list:\t{list}\n")
    }

    #[test]
    fn hardware_threads_of_a_core_count_once() {
        // Core 0 is threads 0 and 4, and so on.
        let paired = system(&[&["0,4", "1,5", "2,6", "3,7"]]);
        let cores = |list: &str| nodes(&status(list), paired.path()).map(|nodes| nodes[0].clone());
        assert_eq!(cores("0-7"), Some(vec![vec![0, 4], vec![1, 5], vec![2, 6], vec![3, 7]]));
        assert_eq!(cores("0-1,4"), Some(vec![vec![0, 4], vec![1]]));
        assert_eq!(cores("1,3-4"), Some(vec![vec![1], vec![3], vec![4]]));
        assert_eq!(cores("3"), Some(vec![vec![3]]));
        assert_eq!(cores("0-8"), None);
        assert_eq!(cores("a-b"), None);
        assert_eq!(nodes("Name:\tpodium\n", paired.path()), None);
    }

    #[test]
    fn nodes_are_read_and_those_without_a_core_here_left_out() {
        let two = system(&[&["0,4", "1,5"], &["2,6", "3,7"]]);
        let firsts = |list: &str| nodes(&status(list), two.path());
        assert_eq!(firsts("0-7"), Some(vec![vec![vec![0, 4], vec![1, 5]], vec![vec![2, 6], vec![3, 7]]]));
        assert_eq!(firsts("1-2,6"), Some(vec![vec![vec![1]], vec![vec![2, 6]]]));
        assert_eq!(firsts("2-3"), Some(vec![vec![vec![2], vec![3]]]));
        // Without NUMA there is no folder of nodes.
        std::fs::remove_dir_all(two.path().join("node")).unwrap();
        assert_eq!(firsts("1-2,5-6"), Some(vec![vec![vec![1, 5], vec![2, 6]]]));
    }

    #[test]
    fn a_thread_is_left_to_connections_and_a_quota_counts() {
        for (logical, nodes, expected) in [
            (8, Some(&[4][..]), (1, 4)),
            (8, Some(&[8]), (1, 7)),
            (2, Some(&[4]), (1, 1)),
            (1, Some(&[1]), (1, 1)),
            (16, None, (1, 15)),
            (2, Some(&[1]), (1, 1)),
            // Two processors, with one or two threads a core; a quota of 8 and of 40 of their 64 cores.
            (64, Some(&[32, 32]), (2, 31)),
            (128, Some(&[32, 32]), (2, 32)),
            (8, Some(&[32, 32]), (1, 7)),
            (40, Some(&[32, 32]), (2, 19)),
            (24, Some(&[16, 4]), (2, 10)),
        ] {
            assert_eq!(shared_out(None, None, (logical, nodes)), expected, "{logical} {nodes:?}");
        }
    }

    #[test]
    fn what_is_configured_is_kept_and_lanes_share_the_cores() {
        let all = (64, Some(&[32, 32][..]));
        assert_eq!(shared_out(None, Some(4), all), (1, 4));
        assert_eq!(shared_out(Some(3), Some(40), all), (3, 40));
        assert_eq!(shared_out(Some(1), None, all), (1, 32));
        assert_eq!(shared_out(Some(3), None, all), (3, 21));
        assert_eq!(shared_out(Some(100), None, all), (100, 1));
        assert_eq!(shared_out(Some(2), None, (8, Some(&[8]))), (2, 3));
    }

    #[test]
    fn lanes_are_pinned_to_cores_of_their_own() {
        let shares = |tier, lanes, threads| shares(vec![vec![0, 1, 2, 3, 8]], tier, lanes, threads);
        assert_eq!(shares(Tier::Primary, 2, 2), Ok(vec![vec![0, 1], vec![2, 3]]));
        assert_eq!(shares(Tier::Fallback, 1, 2), Ok(vec![vec![8, 3]]));
        assert_eq!(shares(Tier::Primary, 5, 1).unwrap().len(), 5);
        let error = shares(Tier::Primary, 2, 3).unwrap_err();
        assert_eq!(error, "pin: 2 lane(s) of 3 thread(s) need 6 physical cores, and 5 can be used");
    }

    #[test]
    fn a_pinned_lane_lies_in_one_node_where_it_fits() {
        let shares = |tier, lanes, threads| {
            shares(vec![vec![0, 1, 2], vec![3, 4, 5, 6]], tier, lanes, threads).unwrap()
        };
        assert_eq!(shares(Tier::Primary, 3, 2), [vec![0, 1], vec![3, 4], vec![5, 6]]);
        assert_eq!(shares(Tier::Fallback, 2, 3), [vec![6, 5, 4], vec![2, 1, 0]]);
        assert_eq!(shares(Tier::Primary, 1, 4), [vec![3, 4, 5, 6]]);
        assert_eq!(shares(Tier::Primary, 1, 6), [vec![0, 1, 2, 3, 4, 5]]);
        assert_eq!(shares(Tier::Primary, 2, 2), [vec![0, 1], vec![3, 4]]);
    }

    #[test]
    fn lanes_that_are_not_pinned_stay_in_nodes_if_each_node_has_one() {
        let two = system(&[&["0,4", "1,5"], &["2,6", "3,7"]]);
        let two = nodes(&status("0-7"), two.path()).unwrap();
        let (first, second) = (vec![0, 4, 1, 5], vec![2, 6, 3, 7]);
        assert_eq!(in_nodes(&two, 2, 2), Some(vec![first.clone(), second.clone()]));
        assert_eq!(in_nodes(&two, 3, 1), Some(vec![first.clone(), second, first]));
        assert_eq!(in_nodes(&two, 1, 1), None);
        assert_eq!(in_nodes(&two, 2, 3), None);
        assert_eq!(in_nodes(&two[..1], 2, 1), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_pinned_thread_and_those_that_it_starts_have_its_cores() {
        let here = || allowed(&std::fs::read_to_string("/proc/thread-self/status").unwrap());
        let before = here().unwrap();
        let last = *before.last().unwrap();
        let (own, started) = std::thread::spawn(move || {
            pin(&[last]).unwrap();
            (here(), std::thread::spawn(here).join().unwrap())
        })
        .join()
        .unwrap();
        assert_eq!((own, started), (Some(vec![last]), Some(vec![last])));
        assert_eq!(here().unwrap(), before);
        assert!(pin(&[]).unwrap_err().starts_with("pin: the hardware threads []"));
    }
}
