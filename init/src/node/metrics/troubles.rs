//! The numbers of what is wrong with the node, from what the API says of it.
//!
//! Owns: their family. Refuses: what is wrong with machines: those have states.

use types::trouble::Trouble;

use super::super::exposition::{Family, Type, Value, text};

/// The text, empty where nothing is wrong.
pub(crate) fn render(troubles: &[Trouble]) -> String {
    let mut all = Family::new(
        "sifr_node_trouble",
        Type::Gauge,
        "1 for each trouble that the node has now.",
    );
    for trouble in troubles.iter().filter(|trouble| trouble.about.is_none()) {
        all.sample(&[("code", trouble.code.word())], Value::Count(1));
    }
    text(&[all])
}

#[cfg(test)]
mod tests {
    use types::trouble::Code;

    use super::super::super::exposition::tests::parse;
    use super::*;

    #[test]
    fn the_nodes_own_troubles_are_told_by_their_codes() {
        let trouble = |about: Option<&str>| Trouble {
            code: Code::PoolSilent,
            about: about.map(str::to_owned),
            message: String::new(),
            uptime_ms: 0,
        };
        let samples = parse(&render(&[trouble(None), trouble(Some("shop/web"))]));
        let [(name, labels, value)] = &samples[..] else {
            panic!("{samples:?}")
        };
        assert_eq!((name.as_str(), *value), ("sifr_node_trouble", 1.0));
        assert_eq!(labels["code"], "pool_silent");
        assert!(render(&[]).is_empty());
    }
}
