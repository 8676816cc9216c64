//! Medians, ratios of pairs, verdicts.

/// Median, least and greatest of a row of figures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// The middle one; of an even number the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Summary {
    /// Of all figures; `None` of none.
    pub fn of(figures: &[f64]) -> Option<Self> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        };
        Some(Self { median, min, max })
    }

    /// Of ours divided by the peer's, pair by pair.
    pub fn of_ratios(pairs: &[(f64, f64)]) -> Option<Self> {
        Self::of(&pairs.iter().map(|(ours, peer)| ours / peer).collect::<Vec<_>>())
    }

    /// `median (min to max)` with so many digits after the point.
    pub fn show(&self, digits: usize) -> String {
        format!(
            "{:.digits$} ({:.digits$} to {:.digits$})",
            self.median, self.min, self.max
        )
    }
}

/// `met` if the figure is not above the goal.
pub fn verdict(figure: f64, goal: f64) -> &'static str {
    if figure <= goal { "met" } else { "missed" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(Summary::of(&[]), None);
        let odd = Summary::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(odd.show(1), "2.0 (1.0 to 3.0)");
    }

    #[test]
    fn ratios_are_of_pairs() {
        let ratios = Summary::of_ratios(&[(2.0, 1.0), (3.0, 6.0), (5.0, 5.0)]).unwrap();
        assert_eq!((ratios.median, ratios.min, ratios.max), (1.0, 0.5, 2.0));
    }

    #[test]
    fn the_goal_itself_is_met() {
        assert_eq!(verdict(1.3, 1.3), "met");
        assert_eq!(verdict(1.31, 1.3), "missed");
    }
}
