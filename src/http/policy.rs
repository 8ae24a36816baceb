//! The policy of a request that names none.

use crate::base::TenantId;
use crate::rerank::Policy;
use crate::wire::Place;

/// Default policies: a tenant's own wins over its path's, and that over the server's.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    /// The server's.
    pub server: Policy,
    /// By path, as README lists the paths.
    pub paths: Vec<(String, Policy)>,
    /// By [`TenantId`]; tenants without one may be left out at the end.
    pub tenants: Vec<Option<Policy>>,
}

impl Policies {
    /// The policy of a tenant's request on a path.
    pub(super) fn of(&self, tenant: TenantId, place: &Place) -> Policy {
        let of_tenant = self.tenants.get(tenant.0 as usize).copied().flatten();
        let of_path = || self.paths.iter().find(|(path, _)| path == place.path()).map(|(_, policy)| *policy);
        of_tenant.or_else(of_path).unwrap_or(self.server)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_s_policy_wins_over_its_path_s_and_that_over_the_server_s() {
        let infer = "/v2/models/{model}/infer".to_owned();
        let policies = Policies {
            server: Policy::Full,
            paths: vec![("/rerank".to_owned(), Policy::TopK), (infer, Policy::Auto)],
            tenants: vec![None, Some(Policy::Fallback)],
        };
        for (tenant, path, expected) in [
            (0, "/v1/rank", Policy::Full),
            (0, "/rerank", Policy::TopK),
            (0, "/v2/models/some-model/infer", Policy::Auto),
            (1, "/v1/rank", Policy::Fallback),
            (1, "/rerank", Policy::Fallback),
            (2, "/rerank", Policy::TopK),
        ] {
            let place = Place::of(path).unwrap();
            assert_eq!(policies.of(TenantId(tenant), &place), expected, "{tenant} {path}");
        }
    }
}
