//! The search for a value among many: binary, never a walk. Over one word, and over the 64 bits of an argument, where
//! the high word is tested once for all values that share it. Shared with the build script.

use std::collections::{BTreeSet, HashMap};

use super::graph::{Graph, Id, JEQ_K, JGE_K};

/// Where each range of values leads: first value and place, sorted, the first value 0.
pub(super) type Ranges<T> = Vec<(T, Id)>;

/// Offset of an argument's low word in struct seccomp_data, on little-endian machines; the high one is 4 further.
pub(super) fn argument_offset(argument: u8) -> u32 {
    16 + 8 * u32::from(argument)
}

/// Finds the range of an argument's bits under `mask`.
pub(super) fn argument(graph: &mut Graph, argument: u8, mask: u64, wide: bool, ranges: &Ranges<u64>) -> Id {
    let at = argument_offset(argument);
    let [low_mask, high_mask] = halves(mask);
    let low = |graph: &mut Graph, ranges: &Ranges<u32>| {
        let found = word(graph, ranges, &|_, _| 1);
        let found = graph.and(low_mask, found);
        graph.load(at, found)
    };
    let of_high = |high: u32| -> Ranges<u32> {
        let (first, last) = (u64::from(high) << 32, u64::from(high) << 32 | u64::from(u32::MAX));
        let before = ranges.iter().rev().find(|(start, _)| *start <= first).map(|(_, id)| (0, *id));
        let inside = ranges.iter().filter(|(start, _)| *start > first && *start <= last);
        before.into_iter().chain(inside.map(|(start, id)| (halves(*start)[0], *id))).collect()
    };
    if !wide {
        return low(graph, &of_high(0));
    }
    // High words at which something changes, at their beginning or within them.
    let mut starts = BTreeSet::from([0]);
    for (start, _) in ranges {
        let [low, high] = halves(*start);
        starts.insert(high);
        if low != 0 {
            starts.extend(high.checked_add(1));
        }
    }
    let mut highs: Ranges<u32> = Vec::new();
    for start in starts {
        let id = low(graph, &of_high(start));
        push(&mut highs, start, id);
    }
    let found = word(graph, &highs, &|_, _| 1);
    let found = graph.and(high_mask, found);
    graph.load(at + 4, found)
}

/// Low and high word.
fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

/// Adds a range, unless it leads where the one before it does.
pub(super) fn push<T>(ranges: &mut Ranges<T>, start: T, id: Id) {
    if ranges.last().is_none_or(|(_, last)| *last != id) {
        ranges.push((start, id));
    }
}

/// Finds the range of the word in the accumulator. `likely` weighs the values from the first to the last, both
/// included: likely ones are found sooner.
pub(super) fn word(graph: &mut Graph, ranges: &Ranges<u32>, likely: &dyn Fn(u32, u32) -> u64) -> Id {
    let ends = ranges.iter().skip(1).map(|(start, _)| start - 1).chain([u32::MAX]);
    let spans: Vec<Span> = ranges
        .iter()
        .zip(ends)
        .map(|((first, id), last)| {
            // A place that is far from its verdict is put nearer to the beginning: the longest way counts too.
            let weight = 1 + 4 * likely(*first, last) + DEPTH * u64::try_from(graph.depth(*id)).unwrap_or(0);
            Span { first: *first, last, id: *id, weight }
        })
        .collect();
    let mut search = Search { graph, best: HashMap::new() };
    search.build(&spans, 0)
}

/// What an instruction of program costs, in the unit of [`Span::weight`] for an instruction executed.
const LENGTH: u64 = 6;
/// What an instruction on the way to the verdict adds to a span's weight.
const DEPTH: u64 = 1;
/// Values tested one after the other at most.
const CHAIN: usize = 3;
/// Where more spans are left, only so many places around the middle are tried for a split.
const TRIED: usize = 6;

#[derive(Debug, Clone, Copy)]
struct Span {
    first: u32,
    last: u32,
    id: Id,
    weight: u64,
}

#[derive(Debug, Clone, Copy)]
enum Choice {
    /// All lead to one place.
    Settled(Id),
    /// Single values, one after the other; all else leads to one place.
    Chain(Id),
    /// In two, before this span.
    Split(usize),
}

struct Search<'a> {
    graph: &'a mut Graph,
    /// The cheapest choice for some of the spans, from and to, and its cost.
    best: HashMap<(usize, usize), (u64, Choice)>,
}

impl Search<'_> {
    /// `from`: index of the first span, as memory of what was found.
    fn build(&mut self, spans: &[Span], from: usize) -> Id {
        match self.choose(spans, from).1 {
            Choice::Settled(id) => id,
            Choice::Chain(other) => {
                let mut id = other;
                for span in exceptions(spans, other).iter().rev() {
                    id = self.graph.branch(JEQ_K, span.first, span.id, id);
                }
                id
            }
            Choice::Split(at) => {
                let (below, above) = spans.split_at(at);
                let start = above.first().map_or(0, |span| span.first);
                let fails = self.build(below, from);
                let holds = self.build(above, from + at);
                self.graph.branch(JGE_K, start, holds, fails)
            }
        }
    }

    fn choose(&mut self, spans: &[Span], from: usize) -> (u64, Choice) {
        let key = (from, from + spans.len());
        if let Some(known) = self.best.get(&key) {
            return *known;
        }
        let best = self.search(spans, from);
        self.best.insert(key, best);
        best
    }

    fn search(&mut self, spans: &[Span], from: usize) -> (u64, Choice) {
        let [first, rest @ ..] = spans else { return (0, Choice::Split(0)) };
        if rest.iter().all(|span| span.id == first.id) {
            return (0, Choice::Settled(first.id));
        }
        let total: u64 = spans.iter().map(|span| span.weight).sum();
        let mut best = chain(spans, total).unwrap_or((u64::MAX, Choice::Split(1)));
        for at in splits(spans, total) {
            let (below, above) = spans.split_at(at);
            let cost = total + LENGTH + self.choose(below, from).0 + self.choose(above, from + at).0;
            if cost < best.0 {
                best = (cost, Choice::Split(at));
            }
        }
        best
    }
}

/// Spans of single values that lead elsewhere than `other`, the heaviest first.
fn exceptions(spans: &[Span], other: Id) -> Vec<Span> {
    let mut exceptions: Vec<Span> = spans.iter().filter(|span| span.id != other).copied().collect();
    exceptions.sort_by_key(|span| std::cmp::Reverse(span.weight));
    exceptions
}

/// The cost of a chain, where one is possible.
fn chain(spans: &[Span], total: u64) -> Option<(u64, Choice)> {
    if spans.len() > 2 * CHAIN + 1 {
        return None;
    }
    let wide = spans.iter().find(|span| span.first != span.last);
    let other = wide.or_else(|| spans.first())?.id;
    let exceptions = exceptions(spans, other);
    if exceptions.len() > CHAIN || exceptions.iter().any(|span| span.first != span.last) {
        return None;
    }
    let mut cost = 0;
    let mut left = total;
    for span in exceptions {
        cost += left + LENGTH;
        left -= span.weight;
    }
    Some((cost, Choice::Chain(other)))
}

/// Places for a split that are worth a try: those around the middle, by weight and by count.
fn splits(spans: &[Span], total: u64) -> BTreeSet<usize> {
    let mut sum = 0;
    let middle = spans
        .iter()
        .position(|span| {
            sum += span.weight;
            2 * sum >= total
        })
        .unwrap_or(0);
    let around = |middle: usize| middle.saturating_sub(TRIED / 2)..=middle + TRIED / 2;
    around(middle).chain(around(spans.len() / 2)).filter(|at| (1..spans.len()).contains(at)).collect()
}
