//! The packet filter rules flannel v0.10 keeps, and what to do so that exactly they are there. Pure; the programs are
//! run by [`crate::net::firewall`].
//!
//! With N the overlay network and S this host's subnet, in this order, appended to the built-in chains:
//!
//! | table, chain | rule |
//! |---|---|
//! | nat POSTROUTING | `-s N -d N -j RETURN` |
//! | | `-s N ! -d 224.0.0.0/4 -j MASQUERADE` |
//! | | `! -s N -d S -j RETURN` |
//! | | `! -s N -d N -j MASQUERADE` |
//! | filter FORWARD | `-s N -j ACCEPT` |
//! | | `-d N -j ACCEPT` |
//!
//! Departures: v0.10 never removes the `-d S` rule of a subnet it had before, nor the rules of another network, nor
//! any rule once `-ip-masq` is taken away; here they go. The order among our rules is checked too.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::types::Subnet;

/// The nftables table that stands in where there is no `iptables`; the name newer flannels use.
pub const NFT_TABLE: &str = "flannel-ipv4";

/// Which rules to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The overlay network.
    pub network: Subnet,
    /// This host's subnet.
    pub subnet: Subnet,
    /// Whether to masquerade.
    pub ip_masq: bool,
    /// Whether to accept the overlay's traffic in FORWARD.
    pub forward: bool,
}

/// A built-in chain and our rules in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// `nat` or `filter`.
    pub table: &'static str,
    /// `POSTROUTING` or `FORWARD`.
    pub chain: &'static str,
    /// The rules that belong there, as `iptables -S` prints them without `-A CHAIN`.
    pub rules: Vec<String>,
    /// Rules of an earlier configuration that do not belong there.
    pub stale: Vec<String>,
    /// Networks whose `! -s N -d S -j RETURN` rules are ours, whichever subnet S they name: this one and the earlier one.
    pub networks: Vec<Subnet>,
}

/// One call of `iptables`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// `-D`.
    Delete(String),
    /// `-A`.
    Append(String),
}

fn masquerade_rules(network: Subnet, subnet: Subnet) -> Vec<String> {
    vec![
        format!("-s {network} -d {network} -j RETURN"),
        format!("-s {network} ! -d 224.0.0.0/4 -j MASQUERADE"),
        own_subnet_rule(network, subnet),
        format!("! -s {network} -d {network} -j MASQUERADE"),
    ]
}

fn own_subnet_rule(network: Subnet, subnet: Subnet) -> String {
    format!("! -s {network} -d {subnet} -j RETURN")
}

fn forward_rules(network: Subnet) -> Vec<String> {
    vec![format!("-s {network} -j ACCEPT"), format!("-d {network} -j ACCEPT")]
}

/// The chains and our rules in them; `previous` is the network an earlier run had, if it is known.
pub fn chains(wanted: &Wanted, previous: Option<Subnet>) -> [Chain; 2] {
    let Wanted { network, subnet, ip_masq, forward } = *wanted;
    let replaced = previous.filter(|p| *p != network);
    let chain = |table, chain, on: bool, rules: Vec<String>, old: Vec<String>| {
        let (rules, unwanted) = if on { (rules, vec![]) } else { (vec![], rules) };
        let networks = std::iter::once(network).chain(replaced).collect();
        Chain { table, chain, rules, stale: unwanted.into_iter().chain(old).collect(), networks }
    };
    let old = |make: &dyn Fn(Subnet) -> Vec<String>| replaced.map(make).unwrap_or_default();
    [
        chain(
            "nat",
            "POSTROUTING",
            ip_masq,
            masquerade_rules(network, subnet),
            old(&|n| masquerade_rules(n, n)),
        ),
        chain("filter", "FORWARD", forward, forward_rules(network), old(&forward_rules)),
    ]
}

/// What to do to a chain, given its rules as `iptables -S CHAIN` lists them.
///
/// Rules of others are neither moved nor looked at. Like flannel, when anything of ours is amiss, all of ours are
/// deleted and appended anew.
pub fn fix(chain: &Chain, listing: &str) -> Vec<Step> {
    let prefix = format!("-A {} ", chain.chain);
    let listed: Vec<&str> =
        listing.lines().filter_map(|l| l.trim_end().strip_prefix(prefix.as_str())).collect();
    let mut steps: Vec<Step> = listed
        .iter()
        .filter(|rule| !chain.rules.iter().any(|r| r == *rule))
        .filter(|rule| chain.stale.iter().any(|r| r == *rule) || is_own_subnet_rule(chain, rule))
        .map(|rule| Step::Delete((*rule).to_owned()))
        .collect();
    let present: Vec<&str> =
        listed.into_iter().filter(|rule| chain.rules.iter().any(|r| r == rule)).collect();
    if !present.iter().eq(chain.rules.iter()) {
        steps.extend(present.into_iter().map(|rule| Step::Delete(rule.to_owned())));
        steps.extend(chain.rules.iter().cloned().map(Step::Append));
    }
    steps
}

/// Whether `rule` is the `! -s N -d S` rule of some subnet of our networks.
fn is_own_subnet_rule(chain: &Chain, rule: &str) -> bool {
    let names_subnet_of = |network: &Subnet| {
        let subnet = rule
            .strip_prefix(&format!("! -s {network} -d "))
            .and_then(|rest| rest.strip_suffix(" -j RETURN")?.parse::<Subnet>().ok());
        subnet.is_some_and(|s| network.contains_subnet(s) && rule == own_subnet_rule(*network, s))
    };
    chain.table == "nat" && chain.networks.iter().any(names_subnet_of)
}

/// The chains of our nftables table: name, what it hooks into, rules as `nft list` prints them.
fn nft_chains(wanted: &Wanted) -> Vec<(&'static str, &'static str, Vec<String>)> {
    let Wanted { network, subnet, ip_masq, forward } = *wanted;
    let masquerade = vec![
        format!("ip saddr {network} ip daddr {network} return"),
        format!("ip saddr {network} ip daddr != 224.0.0.0/4 masquerade"),
        format!("ip saddr != {network} ip daddr {subnet} return"),
        format!("ip saddr != {network} ip daddr {network} masquerade"),
    ];
    let accept = vec![format!("ip saddr {network} accept"), format!("ip daddr {network} accept")];
    let mut chains = Vec::new();
    if ip_masq {
        chains.push(("postrtg", "type nat hook postrouting priority 100; policy accept;", masquerade));
    }
    if forward {
        chains.push(("forward", "type filter hook forward priority 0; policy accept;", accept));
    }
    chains
}

/// The whole nftables ruleset as input for `nft -f -`, one transaction: our table is replaced, nothing else touched.
pub fn nft_ruleset(wanted: &Wanted) -> String {
    let mut text = nft_removal();
    let _ = writeln!(text, "table ip {NFT_TABLE} {{");
    for (name, hook, rules) in nft_chains(wanted) {
        let _ = writeln!(text, "\tchain {name} {{\n\t\t{hook}\n\t\t{}\n\t}}", rules.join("\n\t\t"));
    }
    text.push_str("}\n");
    text
}

/// Whether our table, as `nft list table` prints it, holds exactly our rules.
pub fn nft_is_complete(wanted: &Wanted, listing: &str) -> bool {
    let mut chains: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut current = None;
    for line in listing.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("chain ").and_then(|rest| rest.strip_suffix(" {")) {
            current = Some(name);
            chains.insert(name, vec![]);
        } else if let Some(rules) = current.and_then(|name| chains.get_mut(name)) {
            // The hook is printed in other words than it was given in, and cannot be changed in place.
            if !line.is_empty() && line != "}" && !line.starts_with("type ") {
                rules.push(line);
            }
        }
    }
    let wanted = nft_chains(wanted);
    wanted.len() == chains.len()
        && wanted
            .iter()
            .all(|(name, _, rules)| chains.get(name).is_some_and(|have| have.iter().eq(rules.iter())))
}

/// The nftables commands that remove our table, whether it exists or not.
pub fn nft_removal() -> String {
    format!("add table ip {NFT_TABLE}\ndelete table ip {NFT_TABLE}\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wanted(subnet: &str) -> Wanted {
        let network = "172.17.0.0/16".parse().unwrap();
        Wanted { network, subnet: subnet.parse().unwrap(), ip_masq: true, forward: true }
    }

    fn listing(chain: &Chain, rules: &[String]) -> String {
        let lines: Vec<String> = rules.iter().map(|r| format!("-A {} {r}", chain.chain)).collect();
        format!("-P {} ACCEPT\n{}\n", chain.chain, lines.join("\n"))
    }

    fn run(chain: &Chain, rules: &mut Vec<String>) -> usize {
        let steps = fix(chain, &listing(chain, rules));
        for step in &steps {
            match step {
                Step::Delete(rule) => {
                    let at = rules.iter().position(|r| r == rule).expect("only what is there is deleted");
                    rules.remove(at);
                }
                Step::Append(rule) => rules.push(rule.clone()),
            }
        }
        steps.len()
    }

    #[test]
    fn the_rules_are_flannels() {
        let [nat, filter] = chains(&wanted("172.17.71.0/24"), None);
        assert_eq!(
            nat.rules,
            [
                "-s 172.17.0.0/16 -d 172.17.0.0/16 -j RETURN",
                "-s 172.17.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE",
                "! -s 172.17.0.0/16 -d 172.17.71.0/24 -j RETURN",
                "! -s 172.17.0.0/16 -d 172.17.0.0/16 -j MASQUERADE",
            ]
        );
        assert_eq!(filter.rules, ["-s 172.17.0.0/16 -j ACCEPT", "-d 172.17.0.0/16 -j ACCEPT"]);
    }

    #[test]
    fn rules_of_an_earlier_subnet_or_network_go_and_others_stay() {
        let want = wanted("172.17.71.0/24");
        let [old_nat, _] = chains(&wanted("172.17.9.0/24"), None);
        let docker = "-s 172.18.0.0/16 ! -o br0 -j MASQUERADE".to_owned();
        let [nat, filter] = chains(&want, Some("10.5.0.0/16".parse().unwrap()));
        let mut rules = vec![docker.clone()];
        rules.extend(old_nat.rules);
        // The earlier network's, with the subnet the host had there.
        let earlier = Wanted {
            network: "10.5.0.0/16".parse().unwrap(),
            subnet: "10.5.33.0/24".parse().unwrap(),
            ..want
        };
        rules.extend(chains(&earlier, None)[0].rules.clone());
        run(&nat, &mut rules);
        let expected: Vec<String> = std::iter::once(docker).chain(nat.rules.clone()).collect();
        assert_eq!(rules, expected);
        let mut rules = vec!["-s 10.5.0.0/16 -j ACCEPT".to_owned()];
        run(&filter, &mut rules);
        assert_eq!(rules, filter.rules);
    }

    #[test]
    fn turned_off_means_removed() {
        let on = wanted("172.17.71.0/24");
        let [nat, _] = chains(&on, None);
        let mut rules = nat.rules;
        let off = Wanted { ip_masq: false, ..on };
        let [nat, _] = chains(&off, None);
        run(&nat, &mut rules);
        assert_eq!(rules, Vec::<String>::new());
        assert!(!nft_ruleset(&off).contains("masquerade"));
    }

    #[test]
    fn nftables_gets_the_same_rules() {
        let text = nft_ruleset(&wanted("172.17.71.0/24"));
        for rule in
            ["ip saddr != 172.17.0.0/16 ip daddr 172.17.71.0/24 return", "ip daddr 172.17.0.0/16 accept"]
        {
            assert!(text.contains(rule), "{text}");
        }
        let want = wanted("172.17.71.0/24");
        assert!(nft_is_complete(&want, &text));
        assert!(!nft_is_complete(&want, ""));
        for line in text.lines().filter(|l| l.contains("ip saddr")) {
            assert!(!nft_is_complete(&want, &text.replacen(line, "", 1)), "{line}");
            assert!(!nft_is_complete(&want, &text.replacen(line, &format!("{line}\n{line}"), 1)), "{line}");
        }
        assert!(!nft_is_complete(&wanted("172.17.72.0/24"), &text));
    }

    proptest! {
        /// Whatever part of our rules is there, in whatever order and among whatever else: after one run they are all
        /// there once, in order, the rest is as it was, and a second run does nothing.
        #[test]
        fn one_run_repairs_and_a_second_finds_nothing(picks in prop::collection::vec(0usize..9, 0..12)) {
            let want = wanted("172.17.71.0/24");
            let [nat, _] = chains(&want, None);
            let foreign = ["-j DOCKER".to_owned(), "-s 10.0.0.0/8 -j RETURN".to_owned(), "! -s 172.17.0.0/16 -d 172.17.9.0/24 -j RETURN".to_owned()];
            let mut rules: Vec<String> = picks.iter().map(|n| nat.rules.iter().chain(&foreign).cycle().nth(*n).unwrap().clone()).collect();
            let others: Vec<String> = rules.iter().filter(|r| foreign[..2].contains(r)).cloned().collect();
            run(&nat, &mut rules);
            prop_assert_eq!(run(&nat, &mut rules), 0);
            let (ours, rest): (Vec<_>, Vec<_>) = rules.into_iter().partition(|r| nat.rules.contains(r));
            prop_assert_eq!(ours, nat.rules);
            prop_assert_eq!(rest, others);
        }
    }
}
