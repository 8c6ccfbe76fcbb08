//! Who is in the cluster: ids, names and URLs, as replicated state.
//!
//! Ids are computed as etcd computes them, so the same `--initial-cluster` gives the same ids (etcd v2 API,
//! section 13).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

use crate::voters::Voters;
use crate::wire::json;

/// A member as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// Its name; empty until it has started for the first time.
    pub name: String,
    /// Where other members find it, sorted.
    pub peer_urls: Vec<String>,
    /// Where clients find it; empty until it has started.
    pub client_urls: Vec<String>,
}

impl Member {
    /// A member of a new cluster, from its peer URLs and the cluster's token.
    pub fn bootstrap(name: &str, peer_urls: &[String], token: &str) -> Member {
        let mut peer_urls = peer_urls.to_vec();
        peer_urls.sort();
        Member { id: member_id(&peer_urls, token), name: name.to_owned(), peer_urls, client_urls: Vec::new() }
    }

    /// The member as `/v2/members` shows it.
    pub fn write_json(&self, out: &mut String) {
        let _ = write!(out, "{{\"id\":\"{:x}\",\"name\":", self.id);
        json::write_string(out, &self.name);
        out.push_str(",\"peerURLs\":");
        json::write_strings(out, self.peer_urls.iter().map(String::as_str));
        out.push_str(",\"clientURLs\":");
        json::write_strings(out, self.client_urls.iter().map(String::as_str));
        out.push('}');
    }

    /// What etcd keeps of a member in the tree when it joins.
    pub fn raft_attributes(&self) -> String {
        let mut out = "{\"peerURLs\":".to_owned();
        json::write_strings(&mut out, self.peer_urls.iter().map(String::as_str));
        out.push('}');
        out
    }

    /// What etcd keeps of a member in the tree when it publishes itself.
    pub fn attributes(&self) -> String {
        let mut out = "{\"name\":".to_owned();
        json::write_string(&mut out, &self.name);
        out.push_str(",\"clientURLs\":");
        json::write_strings(&mut out, self.client_urls.iter().map(String::as_str));
        out.push('}');
        out
    }
}

/// First eight bytes of the SHA-1 of the sorted peer URLs and the token.
fn member_id(sorted_peer_urls: &[String], token: &str) -> u64 {
    let mut sha = Sha1::new();
    for url in sorted_peer_urls {
        sha.update(url.as_bytes());
    }
    sha.update(token.as_bytes());
    first_u64(&sha.finalize())
}

fn first_u64(digest: &[u8]) -> u64 {
    digest.iter().take(8).fold(0, |id, &byte| id << 8 | u64::from(byte))
}

/// The members of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The cluster's id, fixed when it was made.
    pub cluster_id: u64,
    /// The version that all members have agreed on; empty until then.
    pub version: String,
    members: BTreeMap<u64, Member>,
    /// Who of them votes.
    pub voters: Voters,
}

/// The members as they were stored before votes were: all of them vote.
#[derive(Serialize, Deserialize)]
pub struct AllVote {
    cluster_id: u64,
    version: String,
    members: BTreeMap<u64, Member>,
}

impl From<AllVote> for Membership {
    fn from(AllVote { cluster_id, version, members }: AllVote) -> Membership {
        let voters = Voters::from(members.keys().copied().collect::<Vec<_>>());
        Membership { cluster_id, version, members, voters }
    }
}

impl From<Membership> for AllVote {
    fn from(Membership { cluster_id, version, members, .. }: Membership) -> AllVote {
        AllVote { cluster_id, version, members }
    }
}

impl Membership {
    /// A new cluster of these members.
    pub fn bootstrap(members: Vec<Member>) -> Membership {
        let members: BTreeMap<u64, Member> = members.into_iter().map(|member| (member.id, member)).collect();
        let mut sha = Sha1::new();
        for id in members.keys() {
            sha.update(id.to_be_bytes());
        }
        let voters = Voters::from(members.keys().copied().collect::<Vec<_>>());
        Membership { cluster_id: first_u64(&sha.finalize()), version: String::new(), members, voters }
    }

    /// The members in order of their ids.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// The ids, in order.
    pub fn ids(&self) -> Vec<u64> {
        self.members.keys().copied().collect()
    }

    /// One member.
    pub fn member(&self, id: u64) -> Option<&Member> {
        self.members.get(&id)
    }

    /// Records what a member tells of itself. Returns the member if it is one.
    pub fn publish(&mut self, id: u64, name: String, client_urls: Vec<String>) -> Option<&Member> {
        let member = self.members.get_mut(&id)?;
        member.name = name;
        member.client_urls = client_urls;
        Some(member)
    }

    /// All client URLs, sorted, as `/v2/machines` shows them.
    pub fn client_urls(&self) -> Vec<&str> {
        let mut urls: Vec<&str> =
            self.members().flat_map(|member| member.client_urls.iter().map(String::as_str)).collect();
        urls.sort_unstable();
        urls
    }

    /// The body of `/v2/members`.
    pub fn list_json(&self) -> String {
        let mut out = "{\"members\":[".to_owned();
        for (at, member) in self.members().enumerate() {
            if at > 0 {
                out.push(',');
            }
            member.write_json(&mut out);
        }
        out.push_str("]}");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(url: &str, token: &str) -> Member {
        Member::bootstrap("n", &[url.to_owned()], token)
    }

    /// The examples were computed by etcd 3.2.12.
    #[test]
    fn ids_are_etcds() {
        for (url, member_id, cluster_id) in [
            ("http://localhost:2380", 0x8e9e_05c5_2164_694d, 0xcdf8_1819_4e3a_8c32),
            ("http://127.0.0.1:12380", 0xddd6_7b31_2462_fd7b, 0xa7ef_944b_9571_1739),
        ] {
            let member = member(url, "etcd-cluster");
            assert_eq!(member.id, member_id);
            assert_eq!(Membership::bootstrap(vec![member]).cluster_id, cluster_id);
        }
        let three = ["http://127.0.0.1:22380", "http://127.0.0.1:22381", "http://127.0.0.1:22382"];
        let cluster = Membership::bootstrap(three.iter().map(|url| member(url, "tok")).collect());
        assert_eq!(cluster.cluster_id, 0xfb5c_d0b1_599e_ebf2);
        assert_eq!(cluster.ids(), [0x117b_9266_988c_4966, 0x592b_2cf6_57ae_2dd6, 0x9c99_ab69_c687_06e2]);
    }

    #[test]
    fn ids_are_shown_without_padding_and_unstarted_members_are_empty() {
        let member = Member {
            id: 0x0628_1700,
            name: String::new(),
            peer_urls: vec!["http://h:1".into()],
            client_urls: vec![],
        };
        let mut out = String::new();
        member.write_json(&mut out);
        assert_eq!(out, r#"{"id":"6281700","name":"","peerURLs":["http://h:1"],"clientURLs":[]}"#);
    }
}
