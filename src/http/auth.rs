//! Authentication: API keys to tenants, compared in constant time.

use crate::base::TenantId;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

type Hash = [u8; 32];

/// The known keys. Only their hashes are kept, so that a memory dump shows no key, and all have the same length.
#[derive(Default)]
pub struct Auth {
    keys: Vec<(Hash, TenantId)>,
    admin: Option<Hash>,
}

/// The result of checking an admin's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admin {
    /// The key is right.
    Allowed,
    /// The key is missing or wrong.
    Unknown,
    /// No admin key is configured.
    Closed,
}

impl Auth {
    /// Takes the keys with their tenants. Without keys every request belongs to the first tenant.
    pub fn new<'a>(keys: impl IntoIterator<Item = (&'a str, TenantId)>, admin: Option<&str>) -> Self {
        let keys = keys.into_iter().map(|(key, tenant)| (hash(key.as_bytes()), tenant)).collect();
        Self { keys, admin: admin.map(|key| hash(key.as_bytes())) }
    }

    /// The tenant of a request; none for a request without a known key.
    pub fn tenant(&self, headers: &HeaderMap) -> Option<TenantId> {
        if self.keys.is_empty() {
            return Some(TenantId(0));
        }
        let given = hash(given(headers)?);
        let mut found = Choice::from(0);
        let mut tenant = 0;
        // All keys are compared, so that the time does not depend on which one matches.
        for (key, owner) in &self.keys {
            let same = key.ct_eq(&given);
            tenant.conditional_assign(&owner.0, same);
            found |= same;
        }
        bool::from(found).then_some(TenantId(tenant))
    }

    /// Whether a request may use the admin's endpoints.
    pub fn admin(&self, headers: &HeaderMap) -> Admin {
        let Some(admin) = &self.admin else { return Admin::Closed };
        let known = given(headers).is_some_and(|key| hash(key).ct_eq(admin).into());
        if known { Admin::Allowed } else { Admin::Unknown }
    }
}

/// The key of a request: `authorization: Bearer`, or the headers of peers.
fn given(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked("bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(key.trim_ascii_start())
    });
    let other = || headers.get("x-api-key").or_else(|| headers.get("api-key")).map(|value| value.as_bytes());
    bearer.or_else(other)
}

fn hash(key: &[u8]) -> Hash {
    Sha256::digest(key).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(name), value.parse().unwrap())])
    }

    #[test]
    fn each_key_has_its_tenant() {
        let auth = Auth::new([("first", TenantId(0)), ("second", TenantId(1)), ("third", TenantId(1))], None);
        let rows = [
            ("authorization", "Bearer first", Some(TenantId(0))),
            ("authorization", "bearer second", Some(TenantId(1))),
            ("x-api-key", "third", Some(TenantId(1))),
            ("api-key", "third", Some(TenantId(1))),
            ("authorization", "Bearer  first", Some(TenantId(0))),
            ("authorization", "Basic first", None),
            ("authorization", "Bearer firs", None),
            ("authorization", "Bearer first ", None),
            ("authorization", "", None),
            ("x-other", "first", None),
        ];
        for (name, value, expected) in rows {
            assert_eq!(auth.tenant(&headers(name, value)), expected, "{name}: {value}");
        }
    }

    #[test]
    fn without_keys_everybody_is_the_first_tenant() {
        assert_eq!(Auth::default().tenant(&HeaderMap::new()), Some(TenantId(0)));
    }

    #[test]
    fn the_admin_has_a_key_of_its_own() {
        let auth = Auth::new([("tenant", TenantId(0))], Some("admin"));
        assert_eq!(auth.admin(&headers("authorization", "Bearer admin")), Admin::Allowed);
        assert_eq!(auth.admin(&headers("authorization", "Bearer tenant")), Admin::Unknown);
        assert_eq!(auth.admin(&HeaderMap::new()), Admin::Unknown);
        assert_eq!(Auth::default().admin(&headers("authorization", "Bearer ")), Admin::Closed);
        assert_eq!(auth.tenant(&headers("authorization", "Bearer admin")), None);
    }
}
