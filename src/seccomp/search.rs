//! The search for a value among many: binary, never a walk. Over one word, and over the 64 bits of an argument, where
//! the high word is tested once for all values that share it. Shared with the build script.

use std::collections::{BTreeMap, BTreeSet, HashMap};

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
        let (windows, dense) = windows(graph, ranges);
        let found = word(graph, &windows, &|_, _| 0);
        let mut found = graph.and(low_mask, found);
        found = graph.load(at, found);
        if dense {
            found = graph.remember_bit(found);
            found = graph.and(low_mask, found);
            found = graph.load(at, found);
        }
        found
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
    let found = word(graph, &highs, &|_, _| 0);
    let found = graph.and(high_mask, found);
    graph.load(at + 4, found)
}

/// Values whose windows are looked up in a bitmap.
const WINDOW: u32 = 32;
/// Instructions that bitmaps must save, for their preparation takes some and costs as many on each way.
const WORTHWHILE: usize = 32;

/// Where values lie close together and lead to one of two places, the search ends at windows of 32 of them, and the
/// answer is a bit. Whether that is so, and the ranges that are left to search.
fn windows(graph: &mut Graph, ranges: &Ranges<u32>) -> (Ranges<u32>, bool) {
    let mut dense = Vec::new();
    let mut saved = 0;
    for inside in ranges.chunk_by(|a, b| a.0 / WINDOW == b.0 / WINDOW) {
        let Some((start, _)) = inside.first() else { continue };
        let first = start - start % WINDOW;
        let before = ranges.iter().rev().find(|(start, _)| *start <= first).map(|(_, id)| *id);
        let at = |value: u32| inside.iter().rev().find(|(start, _)| *start <= value).map(|(_, id)| *id).or(before);
        let places: Vec<Id> = (first..=first + (WINDOW - 1)).filter_map(at).collect();
        let (Some(one), true) = (places.first().copied(), places.len() == 32) else { continue };
        let other = places.iter().copied().find(|place| *place != one);
        let Some(other) = other.filter(|other| places.iter().all(|place| [one, *other].contains(place))) else {
            continue;
        };
        let bits = places.iter().rev().fold(0, |bits, place| bits << 1 | u32::from(*place == other));
        // The way into the window, the load and the test take the place of a test for each change.
        saved += inside.len().saturating_sub(3);
        if inside.len() > 3 {
            dense.push((first, places.last().copied(), bits, other, one));
        }
    }
    if saved < WORTHWHILE {
        return (ranges.clone(), false);
    }
    let mut left: BTreeMap<u32, Id> = ranges.iter().copied().collect();
    for (first, last, bits, holds, fails) in dense {
        let end = first.checked_add(WINDOW);
        left.retain(|start, _| *start < first || end.is_some_and(|end| *start >= end));
        left.insert(first, graph.bits(bits, holds, fails));
        if let (Some(end), Some(last)) = (end, last) {
            left.entry(end).or_insert(last);
        }
    }
    let mut searched = Vec::new();
    for (start, id) in left {
        push(&mut searched, start, id);
    }
    (searched, true)
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
pub(super) fn word(graph: &mut Graph, ranges: &[(u32, Id)], likely: &dyn Fn(u32, u32) -> u64) -> Id {
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
    let mut sum = 0;
    let sums = std::iter::once(0).chain(spans.iter().map(|span| {
        sum += span.weight;
        sum
    }));
    let sums = sums.collect();
    let whole = (0, spans.len());
    Search { graph, spans: &spans, sums, best: HashMap::new() }.build(whole)
}

/// What an instruction of program costs, in the unit of [`Span::weight`] for an instruction executed.
const LENGTH: u64 = 6;
/// What an instruction on the way to the verdict adds to a span's weight.
const DEPTH: u64 = 1;
/// Values tested one after the other at most.
const CHAIN: usize = 4;
/// Splits are tried so far from the middle.
const AROUND: usize = 2;

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
    spans: &'a [Span],
    /// Weight of the spans before each.
    sums: Vec<u64>,
    /// The cheapest choice for some of the spans, from and to, and its cost.
    best: HashMap<(usize, usize), (u64, Choice)>,
}

impl<'a> Search<'a> {
    fn build(&mut self, (from, to): (usize, usize)) -> Id {
        match self.choose((from, to)).1 {
            Choice::Settled(id) => id,
            Choice::Chain(other) => {
                let mut id = other;
                for span in exceptions(self.part((from, to)), other).iter().rev() {
                    id = self.graph.branch(JEQ_K, span.first, span.id, id);
                }
                id
            }
            Choice::Split(at) => {
                let start = self.spans.get(at).map_or(0, |span| span.first);
                let fails = self.build((from, at));
                let holds = self.build((at, to));
                self.graph.branch(JGE_K, start, holds, fails)
            }
        }
    }

    fn part(&self, (from, to): (usize, usize)) -> &'a [Span] {
        self.spans.get(from..to).unwrap_or(&[])
    }

    /// Weight of all spans before one.
    fn sum(&self, before: usize) -> u64 {
        self.sums.get(before).copied().unwrap_or(0)
    }

    fn choose(&mut self, part: (usize, usize)) -> (u64, Choice) {
        if let Some(known) = self.best.get(&part) {
            return *known;
        }
        let best = self.search(part);
        self.best.insert(part, best);
        best
    }

    fn search(&mut self, (from, to): (usize, usize)) -> (u64, Choice) {
        let [first, rest @ ..] = self.part((from, to)) else { return (0, Choice::Split(from)) };
        if rest.iter().all(|span| span.id == first.id) {
            return (0, Choice::Settled(first.id));
        }
        let total = self.sum(to) - self.sum(from);
        let mut best = chain(self.part((from, to)), total).unwrap_or((u64::MAX, Choice::Split(from + 1)));
        // The middle by weight, by count, and what is near the former.
        let half = self.sum(from) + total / 2;
        let middle = self.sums.partition_point(|sum| *sum < half);
        for at in (middle.saturating_sub(AROUND)..=middle + AROUND).chain([from.midpoint(to)]) {
            if at > from && at < to {
                let cost = total + LENGTH + self.choose((from, at)).0 + self.choose((at, to)).0;
                if cost < best.0 {
                    best = (cost, Choice::Split(at));
                }
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
