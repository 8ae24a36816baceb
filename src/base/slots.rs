//! Values by ids that are never used twice.

use std::ops::{Index, IndexMut};

/// Values by id. An id whose value was removed costs four bytes.
#[derive(Clone, Debug)]
pub struct Slots<K, T> {
    /// The values that are present, by rising id.
    values: Vec<(K, T)>,
    /// For each id its position in `values`; [`UNUSED`] before it has a value, [`GONE`] after it.
    places: Vec<u32>,
}

const UNUSED: u32 = u32::MAX;
const GONE: u32 = u32::MAX - 1;

impl<K, T> Default for Slots<K, T> {
    fn default() -> Self {
        Self { values: Vec::new(), places: Vec::new() }
    }
}

impl<K: Copy + Into<u32>, T> Slots<K, T> {
    /// Adds the value of an id.
    ///
    /// # Panics
    /// If the id was used before.
    pub fn insert(&mut self, id: K, value: T) {
        let number = id.into() as usize;
        if number >= self.places.len() {
            self.places.resize(number + 1, UNUSED);
        }
        assert!(self.places[number] == UNUSED, "no id is used again");
        let place = self.values.partition_point(|&(other, _)| (other.into() as usize) < number);
        self.values.insert(place, (id, value));
        self.places[number] = place as u32;
        for (later, _) in &self.values[place + 1..] {
            self.places[(*later).into() as usize] += 1;
        }
    }

    /// Removes the value of an id.
    pub fn remove(&mut self, id: K) -> Option<T> {
        let place = self.place(id)?;
        self.places[id.into() as usize] = GONE;
        let (_, value) = self.values.remove(place);
        for (later, _) in &self.values[place..] {
            self.places[(*later).into() as usize] -= 1;
        }
        Some(value)
    }

    /// The value of an id.
    pub fn get(&self, id: K) -> Option<&T> {
        self.place(id).map(|place| &self.values[place].1)
    }

    /// The value of an id, to be changed.
    pub fn get_mut(&mut self, id: K) -> Option<&mut T> {
        self.place(id).map(|place| &mut self.values[place].1)
    }

    /// The number of values.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The ids of the values, rising.
    pub fn ids(&self) -> impl Iterator<Item = K> + '_ {
        self.values.iter().map(|&(id, _)| id)
    }

    /// The id at a position among the values.
    pub fn id_at(&self, place: usize) -> K {
        self.values[place].0
    }

    /// The values, by rising id.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.values.iter().map(|(_, value)| value)
    }

    /// The values, by rising id, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.values.iter_mut().map(|(_, value)| value)
    }

    fn place(&self, id: K) -> Option<usize> {
        let place = *self.places.get(id.into() as usize)?;
        (place < GONE).then_some(place as usize)
    }
}

impl<K: Copy + Into<u32>, T> Index<K> for Slots<K, T> {
    type Output = T;
    fn index(&self, id: K) -> &T {
        self.get(id).expect("an id that is used has its value")
    }
}

impl<K: Copy + Into<u32>, T> IndexMut<K> for Slots<K, T> {
    fn index_mut(&mut self, id: K) -> &mut T {
        self.get_mut(id).expect("an id that is used has its value")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    proptest! {
        #[test]
        fn slots_agree_with_a_map(steps in prop::collection::vec((any::<bool>(), 0u32..12), 0..60)) {
            let (mut slots, mut map, mut used) = (Slots::default(), BTreeMap::new(), BTreeSet::new());
            for (adds, number) in steps {
                if adds && used.insert(number) {
                    slots.insert(number, number);
                    map.insert(number, number);
                } else {
                    prop_assert_eq!(slots.remove(number), map.remove(&number));
                }
                prop_assert!(slots.ids().eq(map.keys().copied()));
                prop_assert!(slots.values().eq(map.values()));
                prop_assert_eq!((slots.len(), slots.is_empty()), (map.len(), map.is_empty()));
                prop_assert!((0..40).all(|id| slots.get(id) == map.get(&id)));
            }
        }
    }

    #[test]
    #[should_panic(expected = "no id is used again")]
    fn an_id_is_not_used_again() {
        let mut slots = Slots::default();
        slots.insert(3u32, ());
        slots.remove(3);
        slots.insert(3, ());
    }
}
