//! What is served: Triton's repository extension, and the routes for the admin.

use super::handler::App;
use super::pages;
use crate::base::ModelRef;
use crate::deployments::Served;
use crate::engine::{Author, Change, Changed, Listed, ModelPool, PoolError};
use crate::wire::repository::{
    IndexEntry, IndexRequest, LoadRequest, ModelState, RepositoryPath, UnloadRequest, repository_index,
};
use crate::wire::{ApiError, Code, Dialect};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::{Value, json};
use std::sync::Arc;

/// The author of a change whose request names none.
const ADMIN: &str = "admin";
/// The most characters that are kept of an author and of a reason.
const AUTHOR_CHARS_MAX: usize = 200;

impl App {
    /// Answers a request to Triton's repository extension.
    pub(super) async fn repository(
        &self,
        path: RepositoryPath,
        request: Request<Incoming>,
    ) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        if path != RepositoryPath::Index
            && let Some(closed) = self.closed(Dialect::Oip, &parts.headers)
        {
            return closed;
        }
        let answer = match self.body(&parts.headers, body).await {
            Ok(body) => self.in_repository(path, &parts.headers, &body).await,
            Err(error) => Err(error),
        };
        answer.unwrap_or_else(|error| self.fail_with(Dialect::Oip, &error))
    }

    async fn in_repository(
        &self,
        path: RepositoryPath,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Response<Full<Bytes>>, ApiError> {
        let change = match path {
            RepositoryPath::Index => {
                let asked = IndexRequest::read(body)?;
                let listed = match &self.pool {
                    Some(pool) => pool.list().await,
                    None => Ok(Vec::new()),
                };
                let listed = listed.map_err(|why| ApiError::new(Code::Unavailable, why))?;
                return Ok(pages::json(&repository_index(&self.index(&listed), &asked)));
            }
            RepositoryPath::Load(model) => Change::Load(LoadRequest::read(&model, body)?.model),
            RepositoryPath::Unload(model) => Change::Unload(UnloadRequest::read(&model, body)?.model),
        };
        let pool = self.pool()?;
        pool.change(change, author(headers)?).await.map_err(not_made)?;
        // Triton's clients read nothing.
        Ok(pages::json(&json!({})))
    }

    /// Every version that serves or could.
    fn index(&self, listed: &[Listed]) -> Vec<IndexEntry> {
        let entry = |(name, version): (String, String), state, reason| IndexEntry {
            name,
            version: Some(version),
            state,
            reason,
        };
        let serving = self.handle.models();
        let is_serving = |listed: &&Listed| {
            !serving.iter().any(|model| *model.name == *listed.name && *model.version == *listed.version)
        };
        let ready = serving.iter().map(|model| {
            entry((model.name.to_string(), model.version.to_string()), ModelState::Ready, String::new())
        });
        let others = listed.iter().filter(is_serving).map(|listed| {
            let reason = listed.problem.clone().unwrap_or_else(|| "not loaded".to_owned());
            entry((listed.name.clone(), listed.version.clone()), ModelState::Unavailable, reason)
        });
        let mut entries: Vec<IndexEntry> = ready.chain(others).collect();
        entries.sort_by(|one, other| (&one.name, &one.version).cmp(&(&other.name, &other.version)));
        entries
    }

    /// The routes with the versions that serve on them.
    pub(super) fn routes(&self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        self.closed(Dialect::Podium, headers).unwrap_or_else(|| {
            let models = |models: &[ModelRef]| models.iter().map(ModelRef::to_string).collect::<Vec<_>>();
            let route = |(name, line): (Arc<str>, Served)| {
                json!({
                    "name": *name, "primaries": models(&line.primaries),
                    "fallback": line.fallback.as_ref().map(ModelRef::to_string),
                })
            };
            let routes: Vec<Value> = self.handle.serving().into_iter().map(route).collect();
            pages::json(&json!({"object": "list", "data": routes}))
        })
    }

    /// Makes live again what was live on a route before.
    pub(super) async fn roll_back(&self, route: String, headers: &HeaderMap) -> Response<Full<Bytes>> {
        if let Some(closed) = self.closed(Dialect::Podium, headers) {
            return closed;
        }
        let rolled_back = async {
            let (pool, author) = (self.pool()?, author(headers)?);
            pool.change(Change::RollBack { route }, author).await.map_err(not_made)
        };
        match rolled_back.await {
            Ok(Changed { up, down }) => {
                let named = |models: &[ModelRef]| models.iter().map(ModelRef::to_string).collect::<Vec<_>>();
                pages::json(&json!({"up": named(&up), "down": named(&down)}))
            }
            Err(error) => self.fail_with(Dialect::Podium, &error),
        }
    }

    fn pool(&self) -> Result<&ModelPool, ApiError> {
        let none = "models cannot be changed: start the server with --model-repository DIR";
        self.pool.as_ref().ok_or_else(|| ApiError::new(Code::NotFound, none))
    }
}

/// Who makes a change and why, as the headers say.
fn author(headers: &HeaderMap) -> Result<Author, ApiError> {
    let header = |name: &str| match headers.get(name).map(|value| value.to_str()) {
        None => Ok(None),
        Some(Ok(value)) => Ok(Some(value.chars().take(AUTHOR_CHARS_MAX).collect())),
        Some(Err(_)) => Err(ApiError::invalid(name, "must be of printable ASCII characters")),
    };
    let who = header("x-podium-who")?.unwrap_or_else(|| ADMIN.to_owned());
    Ok(Author { who, why: header("x-podium-why")?.unwrap_or_default() })
}

fn not_made(error: PoolError) -> ApiError {
    let code = match error {
        PoolError::NotFound(_) => Code::UnknownModel,
        PoolError::Conflict(_) | PoolError::Failed(_) => Code::InvalidRequest,
        PoolError::Stopped => Code::Unavailable,
    };
    ApiError::new(code, error.to_string())
}
