//! The cores that lanes compute on: those that this process may use, as the system and a container's quota say. A lane may
//! be pinned to some of them.

use crate::base::Tier;
use std::collections::BTreeMap;

/// The niceness of threads that load a model beside those that serve: they get about a tenth of what others get.
const LOADING_NICE: i32 = 10;

/// Threads of a lane, where the configuration does not say. Two hardware threads of a core share its arithmetic units, so
/// that one computes; one hardware thread is left to connections. A container's quota (`cpu.max`) counts as cores.
pub(super) fn compute_threads() -> usize {
    let logical = std::thread::available_parallelism().map_or(1, usize::from);
    threads(logical, physical_here().map(|cores| cores.len()))
}

/// At most one for each physical core, where these are known, and one less than there are hardware threads.
fn threads(logical: usize, physical: Option<usize>) -> usize {
    physical.unwrap_or(logical).min(logical.saturating_sub(1)).max(1)
}

/// For each lane of a tier the hardware threads that it is pinned to, each on another physical core. The primary's lanes have
/// the first cores and the fallback's the last ones, so that the tiers share cores only where there are too few for both.
pub(super) fn of_lanes(tier: Tier, lanes: usize, threads: usize) -> Result<Vec<Vec<usize>>, String> {
    let cores = physical_here().ok_or("pin: the system does not say which cores this process may use")?;
    shares(cores, tier, lanes, threads)
}

fn shares(
    mut cores: Vec<usize>,
    tier: Tier,
    lanes: usize,
    threads: usize,
) -> Result<Vec<Vec<usize>>, String> {
    let (needed, here) = (lanes * threads, cores.len());
    if needed > here {
        return Err(format!(
            "pin: {lanes} lane(s) of {threads} thread(s) need {needed} physical cores, and {here} can be used"
        ));
    }
    if tier == Tier::Fallback {
        cores.reverse();
    }
    Ok(cores.chunks(threads).take(lanes).map(<[usize]>::to_vec).collect())
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

/// A hardware thread of each physical core that this process may use; none where the system does not say.
fn physical_here() -> Option<Vec<usize>> {
    let allowed = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let siblings = |cpu: usize| {
        std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"))
            .ok()
    };
    physical(&allowed, siblings)
}

/// The first hardware thread of each core among those that `/proc/self/status` allows, in order.
fn physical(status: &str, siblings: impl Fn(usize) -> Option<String>) -> Option<Vec<usize>> {
    let mut cores = BTreeMap::new();
    for cpu in allowed(status)? {
        cores.entry(siblings(cpu)?).or_insert(cpu);
    }
    let mut firsts: Vec<usize> = cores.into_values().collect();
    firsts.sort_unstable();
    Some(firsts)
}

/// The hardware threads that `/proc/self/status` allows.
fn allowed(status: &str) -> Option<Vec<usize>> {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
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

    #[test]
    fn hardware_threads_of_a_core_count_once() {
        // Core 0 is threads 0 and 4, and so on.
        let paired = |cpu: usize| (cpu < 8).then(|| format!("{},{}\n", cpu % 4, cpu % 4 + 4));
        let alone = |cpu: usize| Some(format!("{cpu}\n"));
        let status = |list: &str| format!("Name:\tpodium\nCpus_allowed_list:\t{list}\n");
        assert_eq!(physical(&status("0-7"), paired), Some(vec![0, 1, 2, 3]));
        assert_eq!(physical(&status("0-1,4"), paired), Some(vec![0, 1]));
        assert_eq!(physical(&status("1,3-4"), paired), Some(vec![1, 3, 4]));
        assert_eq!(physical(&status("3"), paired), Some(vec![3]));
        assert_eq!(physical(&status("8-11"), alone), Some(vec![8, 9, 10, 11]));
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

    #[test]
    fn lanes_are_pinned_to_cores_of_their_own() {
        let shares = |tier, lanes, threads| shares(vec![0, 1, 2, 3, 8], tier, lanes, threads);
        assert_eq!(shares(Tier::Primary, 2, 2), Ok(vec![vec![0, 1], vec![2, 3]]));
        assert_eq!(shares(Tier::Fallback, 1, 2), Ok(vec![vec![8, 3]]));
        assert_eq!(shares(Tier::Primary, 5, 1).unwrap().len(), 5);
        let error = shares(Tier::Primary, 2, 3).unwrap_err();
        assert_eq!(error, "pin: 2 lane(s) of 3 thread(s) need 6 physical cores, and 5 can be used");
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
