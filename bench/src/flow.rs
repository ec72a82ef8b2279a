//! What one receiver has seen of one sender.

/// Sequence numbers this far behind the newest are still told from duplicates.
pub const WINDOW: u64 = 4096;

const WORDS: usize = 64;

/// Follows the sequence numbers of one sender as they arrive at one receiver.
#[derive(Clone, Debug)]
pub struct Flow {
    /// One above the highest number seen.
    next: u64,
    received: u64,
    reordered: u64,
    duplicates: u64,
    /// Which of the last [`WINDOW`] numbers have been seen: number `n` at bit `n % WINDOW`.
    window: [u64; WORDS],
}

impl Default for Flow {
    fn default() -> Self {
        Self {
            next: 0,
            received: 0,
            reordered: 0,
            duplicates: 0,
            window: [0; WORDS],
        }
    }
}

impl Flow {
    /// Takes the next arrival.
    pub fn see(&mut self, sequence: u64) {
        if sequence >= self.next {
            self.skip_to(sequence);
            self.mark(sequence);
            self.next = sequence + 1;
        } else if self.next - sequence > WINDOW {
            // Too old to know whether it came before. Either way it is out of order.
            self.reordered += 1;
        } else if self.is_marked(sequence) {
            self.duplicates += 1;
            return;
        } else {
            self.mark(sequence);
            self.reordered += 1;
        }
        self.received += 1;
    }

    /// Different frames received.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Frames that came after a later one.
    pub fn reordered(&self) -> u64 {
        self.reordered
    }

    /// Frames that came again.
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Frames missing of the `offered` that were sent.
    pub fn lost(&self, offered: u64) -> u64 {
        offered.saturating_sub(self.received)
    }

    /// Forgets what the numbers up to `sequence` displace from the window.
    fn skip_to(&mut self, sequence: u64) {
        if sequence - self.next >= WINDOW {
            self.window = [0; WORDS];
            return;
        }
        for number in self.next..=sequence {
            let (word, bit) = place(number);
            self.window[word] &= !bit;
        }
    }

    fn mark(&mut self, sequence: u64) {
        let (word, bit) = place(sequence);
        self.window[word] |= bit;
    }

    fn is_marked(&self, sequence: u64) -> bool {
        let (word, bit) = place(sequence);
        self.window[word] & bit != 0
    }
}

fn place(sequence: u64) -> (usize, u64) {
    let at = sequence % WINDOW;
    let word = usize::try_from(at / 64).expect("the window has 64 words");
    (word, 1 << (at % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(numbers: impl IntoIterator<Item = u64>) -> Flow {
        let mut flow = Flow::default();
        numbers.into_iter().for_each(|n| flow.see(n));
        flow
    }

    fn counts(flow: &Flow) -> (u64, u64, u64) {
        (flow.received(), flow.reordered(), flow.duplicates())
    }

    #[test]
    fn in_order() {
        let flow = flow(0..3 * WINDOW);
        assert_eq!(counts(&flow), (3 * WINDOW, 0, 0));
        assert_eq!(flow.lost(3 * WINDOW + 2), 2);
    }

    #[test]
    fn a_gap_is_loss_and_not_disorder() {
        for gap in [1, WINDOW - 1, WINDOW, 5 * WINDOW] {
            let end = 10 + gap + 10;
            let flow = flow((0..10).chain(10 + gap..end));
            assert_eq!(counts(&flow), (20, 0, 0), "gap {gap}");
            assert_eq!(flow.lost(end), gap);
        }
    }

    #[test]
    fn late_and_twice() {
        assert_eq!(counts(&flow([0, 2, 1, 3])), (4, 1, 0));
        assert_eq!(counts(&flow([0, 1, 1, 2, 0])), (3, 0, 2));
        assert_eq!(counts(&flow([5, 5, 4, 4])), (2, 1, 2));
    }

    #[test]
    fn the_window_forgets_what_is_too_old() {
        let flow = flow((0..2 * WINDOW).chain([WINDOW - 1, 2 * WINDOW - 1, WINDOW]));
        assert_eq!(counts(&flow), (2 * WINDOW + 1, 1, 2));
    }

    #[test]
    fn bits_of_the_last_round_do_not_count() {
        // 1 is lost; WINDOW + 1 shares its bit, and so does 2 * WINDOW + 1.
        let flow = flow((0..=WINDOW + 5).chain([WINDOW + 5 + WINDOW, WINDOW + 10]));
        assert_eq!(counts(&flow), (WINDOW + 8, 1, 0));
    }
}
