//! Mines the lists that the teacher labels: a query with easy and hard candidates.
//!
//! The candidates of a list are whole passages or pieces of one to three sentences, because rerankers are used on both.
//! Most come from BM25's ranking, at all depths, because a reranker must tell those apart; at least one is random. A share
//! of the queries is made from the passages (Izacard et al. 2022, "independent cropping"; Lee et al. 2019, the inverse cloze
//! task). Sentences and runs of words stand for long and topical queries, which query logs lack. Questions for a name or a
//! number in a sentence (after Lewis et al. 2019, cloze translation) have their answer in the passages, which few questions
//! of a log have.

use super::bm25::Bm25;
use super::text::{Text, sentences};
use crate::eval::List;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// How lists are mined.
#[derive(Clone, Debug, serde::Serialize)]
pub struct MinePlan {
    /// Number of lists.
    pub lists: usize,
    /// Candidates per list, at least 4.
    pub candidates: usize,
    /// The share of lists whose query is made from a passage.
    pub made_share: f64,
    /// The share of the made queries that are questions.
    pub question_share: f64,
    /// The share of lists whose candidates are pieces of passages.
    pub pieces_share: f64,
    /// The seed of all random choices.
    pub seed: u64,
}

/// Passages or pieces of passages, with their index.
struct Units {
    texts: Vec<Arc<str>>,
    index: Bm25,
}

impl Units {
    fn new(texts: Vec<Arc<str>>) -> Self {
        let index = Bm25::new(texts.iter().map(|text| &**text));
        Self { texts, index }
    }
}

/// Draws lists, in random order. Lists with fewer than two candidates are left out.
pub fn mine(queries: &[Text], passages: &[Text], plan: &MinePlan) -> Vec<List> {
    let mut random = Pcg64::seed_from_u64(plan.seed);
    let pieces: Vec<Arc<str>> =
        passages.iter().flat_map(|passage| pieces_of(&passage.text, &mut random)).collect();
    let whole = Units::new(passages.iter().map(|passage| passage.text.as_str().into()).collect());
    let pieces = Units::new(pieces);
    let made = (plan.lists as f64 * plan.made_share) as usize;
    let asked = take_turns(queries, plan.lists - made, &mut random);
    let mut random = Pcg64::seed_from_u64(plan.seed.wrapping_add(1));
    let mut drawn = with_choices(asked, plan, &mut random);
    let mut random = Pcg64::seed_from_u64(plan.seed.wrapping_add(2));
    let make = || make_query(passages, plan.question_share, &mut random);
    let asked = std::iter::repeat_with(make).take(made).flatten().collect();
    let mut random = Pcg64::seed_from_u64(plan.seed.wrapping_add(3));
    drawn.extend(with_choices(asked, plan, &mut random));
    drawn.shuffle(&mut random);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = drawn.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let work = drawn.chunks(share).map(|part| {
            scope.spawn(|| {
                let lists = part.iter().map(|(query, of_pieces, random)| {
                    let units = if *of_pieces { &pieces } else { &whole };
                    let documents = draw(query, units, plan.candidates, &mut random.clone());
                    List { query: query.clone(), documents }
                });
                lists.filter(|list| list.documents.len() > 1).collect::<Vec<_>>()
            })
        });
        let work: Vec<_> = work.collect();
        work.into_iter().flat_map(|part| part.join().expect("mining has no reason to panic")).collect()
    })
}

/// For each query, whether its candidates are pieces, and the generator that draws them. The choices are made here, before
/// the work is divided among threads, so that the number of threads has no effect. They are made in the order of the
/// queries, so that a larger plan repeats the lists of a smaller one, whose labels are already cached.
fn with_choices(asked: Vec<Arc<str>>, plan: &MinePlan, random: &mut Pcg64) -> Vec<(Arc<str>, bool, Pcg64)> {
    let choices = |query| {
        let of_pieces = random.random::<f64>() < plan.pieces_share;
        (query, of_pieces, Pcg64::seed_from_u64(random.random()))
    };
    asked.into_iter().map(choices).collect()
}

/// Splits a passage into runs of one to three sentences.
fn pieces_of(passage: &str, random: &mut Pcg64) -> Vec<Arc<str>> {
    let sentences = sentences(passage, 25);
    let mut pieces = Vec::new();
    let mut first = 0;
    while first < sentences.len() {
        let end = (first + [1, 1, 2, 3].choose(random).expect("there are four")).min(sentences.len());
        pieces.push(sentences[first..end].join(" ").into());
        first = end;
    }
    pieces
}

/// Queries in random order, drawn from the sources in turn until each is exhausted.
fn take_turns(queries: &[Text], count: usize, random: &mut Pcg64) -> Vec<Arc<str>> {
    let mut sources: BTreeMap<&str, Vec<&Text>> = BTreeMap::new();
    for query in queries {
        sources.entry(&query.source).or_default().push(query);
    }
    let mut sources: Vec<Vec<&Text>> = sources.into_values().collect();
    sources.iter_mut().for_each(|source| source.shuffle(random));
    let mut taken = Vec::new();
    while taken.len() < count && !sources.is_empty() {
        sources.retain_mut(|source| {
            let next = source.pop();
            taken.extend(next.filter(|_| taken.len() < count).map(|query| query.text.as_str().into()));
            next.is_some()
        });
    }
    taken
}

/// Makes a query from a random sentence: a question, the sentence up to its 40th word, or a run of 3 to 10 words of it.
fn make_query(passages: &[Text], question_share: f64, random: &mut Pcg64) -> Option<Arc<str>> {
    let passage = passages.choose(random)?;
    let sentences = sentences(&passage.text, 25);
    let words: Vec<&str> = sentences.choose(random)?.split_whitespace().take(40).collect();
    // With a share of 0 no random number is drawn, so that lists of plans without questions stay the same.
    if question_share > 0.0
        && random.random::<f64>() < question_share
        && let Some(question) = make_question(&words, random)
    {
        return Some(question.into());
    }
    if random.random::<f64>() < 0.5 {
        return Some(words.join(" ").into());
    }
    let length = random.random_range(3..=10).min(words.len());
    let start = random.random_range(0..=words.len() - length);
    Some(words[start..start + length].join(" ").into())
}

/// Makes a question for a name or a number of a sentence: removes it, and keeps words around it behind a question word. A
/// passage with the same words but without such a name or number does not answer it.
fn make_question(words: &[&str], random: &mut Pcg64) -> Option<String> {
    // From 1: the first word of a sentence always looks like a name.
    let places: Vec<usize> = (1..words.len()).filter(|&place| Asked::of(words[place]).is_some()).collect();
    let &place = places.choose(random)?;
    let asked = Asked::of(words[place])?;
    let same = |word: &&&str| asked == Asked::Name && Asked::of(word) == Some(Asked::Name);
    let (before, after) = (&words[1..place], &words[place + 1..]);
    let start = place - before.iter().rev().take_while(same).count();
    let end = place + 1 + after.iter().take_while(same).count();
    let from = start.saturating_sub(random.random_range(3..=8));
    let to = (end + random.random_range(1..=6)).min(words.len());
    let mut question = vec![*asked.question_words().choose(random)?];
    question.extend(words[from..start].iter().chain(&words[end..to]));
    (question.len() > 3).then(|| question.join(" "))
}

/// The kind of answer that a question asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Year,
    Number,
    Name,
}

impl Asked {
    fn of(word: &str) -> Option<Self> {
        let bare = word.trim_matches(|letter: char| !letter.is_alphanumeric());
        let year = |number: u32| (1000..2100).contains(&number);
        match bare.chars().next()? {
            '0'..='9' if bare.len() == 4 && bare.parse().is_ok_and(year) => Some(Self::Year),
            '0'..='9' => Some(Self::Number),
            letter if letter.is_uppercase() => Some(Self::Name),
            _ => None,
        }
    }

    fn question_words(self) -> &'static [&'static str] {
        match self {
            Self::Year => &["when", "what year", "in what year"],
            Self::Number => &["how many", "how much", "what number"],
            Self::Name => &["who", "where", "what", "which"],
        }
    }
}

/// Draws candidates: a quarter each from ranks 1 to 3, the next 18 and the next 63, a few from further down, the rest at
/// random.
fn draw(query: &str, units: &Units, count: usize, random: &mut Pcg64) -> Vec<Arc<str>> {
    let mut ranked = units.index.search(query, 200);
    let quarter = count / 4;
    let mut drawn = Vec::new();
    for (depth, wanted) in [(3, quarter), (18, quarter), (63, quarter), (200, count / 12 + 1)] {
        let mut layer: Vec<u32> = ranked.drain(..ranked.len().min(depth.max(wanted))).collect();
        layer.shuffle(random);
        drawn.extend(layer.into_iter().take(wanted));
    }
    drawn.truncate(count);
    while drawn.len() < count && !units.texts.is_empty() {
        drawn.push(random.random_range(0..units.texts.len() as u32));
    }
    let mut seen = HashSet::new();
    drawn.retain(|&unit| {
        let text = &units.texts[unit as usize];
        **text != *query && seen.insert(text.clone())
    });
    drawn.into_iter().map(|unit| units.texts[unit as usize].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(source: &str, count: usize) -> Vec<Text> {
        let text = |n| Text {
            source: source.to_owned(),
            text: format!(
                "The {source} number {n} is about topic {}. It has another sentence of {n} words.",
                n % 7
            ),
        };
        (0..count).map(text).collect()
    }

    fn plan() -> MinePlan {
        MinePlan {
            lists: 40,
            candidates: 12,
            made_share: 0.25,
            question_share: 0.5,
            pieces_share: 0.5,
            seed: 7,
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_lists() {
        let (queries, passages) = (texts("query", 100), texts("passage", 200));
        let lists = mine(&queries, &passages, &plan());
        assert_eq!(lists.len(), 40);
        for list in &lists {
            assert!((9..=12).contains(&list.documents.len()), "{}", list.documents.len());
            assert!(!list.documents.contains(&list.query));
        }
        assert_eq!(lists, mine(&queries, &passages, &plan()));
        assert_ne!(lists, mine(&queries, &passages, &MinePlan { seed: 8, ..plan() }));
    }

    #[test]
    fn a_larger_plan_repeats_the_lists_of_a_smaller_one() {
        let (queries, passages) = (texts("query", 100), texts("passage", 200));
        let few = mine(&queries, &passages, &plan());
        let many = mine(&queries, &passages, &MinePlan { lists: 80, ..plan() });
        assert_eq!(few.iter().filter(|list| many.contains(list)).count(), few.len());
    }

    #[test]
    fn sources_take_turns() {
        let queries = [texts("many", 100), texts("few", 10)].concat();
        let taken = take_turns(&queries, 30, &mut Pcg64::seed_from_u64(1));
        assert_eq!(taken.iter().filter(|query| query.contains("few")).count(), 10);
        assert_eq!(taken.len(), 30);
    }

    #[test]
    fn a_question_asks_for_the_words_that_were_removed() {
        let words: Vec<&str> = "The river rises near Mount Blue in 1956, 12 miles long.".split(' ').collect();
        let mut random = Pcg64::seed_from_u64(1);
        let asked: HashSet<String> = (0..2000).filter_map(|_| make_question(&words, &mut random)).collect();
        for question in &asked {
            let has = |word: &str| question.contains(word);
            match question.split(' ').next().unwrap() {
                "when" => assert!(!has("1956"), "{question}"),
                "who" | "where" | "which" => assert!(!has("Mount") && !has("Blue"), "{question}"),
                "how" => assert!(!has("12"), "{question}"),
                first => assert!(["what", "in"].contains(&first), "{question}"),
            }
        }
        assert!(asked.contains("where river rises near in 1956, 12"), "{asked:?}");
        let plain: Vec<&str> = "The river rises near a lake.".split(' ').collect();
        assert_eq!(make_question(&plain, &mut random), None);
    }

    #[test]
    fn too_little_text_gives_what_there_is() {
        assert!(mine(&[], &[], &plan()).is_empty());
        assert!(mine(&texts("query", 3), &[], &plan()).is_empty());
        let lists = mine(&texts("query", 3), &texts("passage", 5), &plan());
        assert!(lists.iter().all(|list| list.documents.len() <= 10), "{lists:?}");
    }
}
