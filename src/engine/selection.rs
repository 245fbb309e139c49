//! Which collections of the source database take part.

use thiserror::Error;

/// A selection that cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SelectionError {
    /// A pattern is the empty string.
    #[error("a collection pattern is empty: write a collection's name, or \"*\" for all")]
    Empty,
    /// A pattern holds a NUL byte, which no collection name can.
    #[error("the collection pattern {0:?} holds a NUL byte, which no collection name can")]
    Nul(String),
}

/// Include and exclude patterns over collection names. `*` stands for any characters, also none.
///
/// A collection takes part if an include pattern matches and no exclude pattern does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Selection {
    include: Vec<String>,
    exclude: Vec<String>,
}

impl Default for Selection {
    fn default() -> Self {
        Self {
            include: vec!["*".into()],
            exclude: Vec::new(),
        }
    }
}

impl Selection {
    /// What stands for the fingerprint while another selection is brought about; none reads so.
    pub const UNDER_WAY: &str = "";

    /// An empty `include` means everything.
    ///
    /// # Errors
    /// If a pattern can never match.
    pub fn new(mut include: Vec<String>, mut exclude: Vec<String>) -> Result<Self, SelectionError> {
        if include.is_empty() {
            include.push("*".into());
        }
        for pattern in include.iter().chain(&exclude) {
            if pattern.is_empty() {
                return Err(SelectionError::Empty);
            }
            if pattern.contains('\0') {
                return Err(SelectionError::Nul(pattern.clone()));
            }
        }
        // Order and repetition mean nothing, so they must not look like a change.
        for list in [&mut include, &mut exclude] {
            list.sort();
            list.dedup();
        }
        Ok(Self { include, exclude })
    }

    /// Whether the collection takes part.
    pub fn selects(&self, collection: &str) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, collection));
        any(&self.include) && !any(&self.exclude)
    }

    /// Whether every collection takes part.
    pub fn is_everything(&self) -> bool {
        self.exclude.is_empty() && self.include.iter().any(|pattern| pattern == "*")
    }

    /// The selection in one line: stored with the checkpoint, because a position taken under one
    /// selection says nothing about another.
    pub fn fingerprint(&self) -> String {
        // JSON, with a space behind each comma.
        let list = |patterns: &[String]| {
            let patterns = patterns.iter().map(|it| serde_json::json!(it).to_string());
            patterns.collect::<Vec<_>>().join(", ")
        };
        format!(
            "include [{}] exclude [{}]",
            list(&self.include),
            list(&self.exclude)
        )
    }

    /// The selection that has this fingerprint, if one has.
    pub fn of_fingerprint(fingerprint: &str) -> Option<Self> {
        let rest = fingerprint.strip_prefix("include ")?;
        let mut lists = serde_json::Deserializer::from_str(rest).into_iter::<Vec<String>>();
        let include = lists.next()?.ok()?;
        let rest = rest.get(lists.byte_offset()..)?;
        let exclude = serde_json::from_str(rest.strip_prefix(" exclude ")?).ok()?;
        let selection = Self::new(include, exclude).ok()?;
        (selection.fingerprint() == fingerprint).then_some(selection)
    }
}

/// Glob match with `*` only: greedy with one step back, linear in practice.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, n));
            p += 1;
        } else if pattern.get(p) == Some(&name[n]) {
            p += 1;
            n += 1;
        } else if let Some((after, from)) = star {
            star = Some((after, from + 1));
            p = after + 1;
            n = from + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(include: &[&str], exclude: &[&str]) -> Selection {
        let own = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        Selection::new(own(include), own(exclude)).unwrap()
    }

    #[test]
    fn a_fingerprint_tells_its_selection_or_nothing() {
        for (include, exclude) in [
            (&["*"][..], &[][..]),
            (
                &["a", "b*"],
                &["b1", "] exclude [", "q\"uote", "back\\slash"],
            ),
            (&["größe", "e\u{301}"], &["x y", "\u{7f}"]),
        ] {
            let selection = selection(include, exclude);
            let told = Selection::of_fingerprint(&selection.fingerprint());
            assert_eq!(told, Some(selection));
        }
        for untold in ["", "*", "include [\"a\"]", "include [] exclude []"] {
            assert_eq!(Selection::of_fingerprint(untold), None, "{untold}");
        }
    }

    #[test]
    fn everything_is_selected_by_default() {
        assert!(Selection::default().selects("orders"));
        assert!(selection(&[], &[]).is_everything());
    }

    #[test]
    fn exclude_wins_over_include() {
        let selection = selection(&["order*"], &["*.tmp", "orders_old"]);
        assert!(selection.selects("orders"));
        assert!(!selection.selects("orders.tmp"));
        assert!(!selection.selects("orders_old"));
        assert!(!selection.selects("customers"));
    }

    #[test]
    fn stars_match_anywhere_and_nothing() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("a*", "a", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("*aab", "aaaab", true),
            ("a", "ab", false),
            ("a.b", "a.b", true),
            ("a.b", "axb", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn an_empty_pattern_is_refused() {
        assert_eq!(
            Selection::new(vec![String::new()], vec![]),
            Err(SelectionError::Empty)
        );
    }

    #[test]
    fn order_and_repetition_do_not_change_the_fingerprint() {
        assert_eq!(
            selection(&["b", "a", "a"], &[]).fingerprint(),
            selection(&["a", "b"], &[]).fingerprint()
        );
    }
}
