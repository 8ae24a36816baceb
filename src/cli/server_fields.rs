//! A server and its kinds of requests, parsed from the fields of a flag.

use crate::base::Ns;
use crate::engine::Clock;
use crate::load::{Client, ClientLimits, Kind, Target};
use crate::wire::Dialect;

/// A server, and the kinds of requests to send.
#[derive(Clone)]
pub(super) struct ServerFields {
    pub target: Target,
    pub kinds: Vec<Kind>,
}

impl ServerFields {
    /// Applies fields: `url=http://host,dialect=tei,model=x`, and the fields of [`Kind::with`], which change all kinds.
    ///
    /// # Errors
    /// The message names the field and its allowed values.
    pub fn with(mut self, fields: &str) -> Result<Self, String> {
        let mut wishes = Vec::new();
        for field in fields.split(',') {
            match field.split_once('=') {
                Some(("url", url)) => url.clone_into(&mut self.target.url),
                Some(("dialect", name)) => {
                    let found = dialect(name).map_err(|all| format!("dialect: `{name}` is not {all}"));
                    self.target.dialect = found?;
                }
                Some(("model", name)) => self.target.model = Some(name.to_owned()),
                _ => wishes.push(field),
            }
        }
        if !wishes.is_empty() {
            let changed = self.kinds.into_iter().map(|kind| kind.with(&wishes.join(","), &environment));
            self.kinds = changed.collect::<Result<_, _>>()?;
        }
        Ok(self)
    }

    /// A client for it.
    ///
    /// # Errors
    /// The message says what is wrong with the address, or that a model is missing.
    pub fn client(&self, limits: ClientLimits) -> Result<Client, String> {
        if self.target.dialect.needs_model() && self.target.model.is_none() {
            return Err(format!("the dialect {} needs a model", self.target.dialect.name()));
        }
        Client::new(self.target.clone(), limits, Clock::start())
    }
}

pub(super) fn dialect(name: &str) -> Result<Dialect, String> {
    let found = Dialect::ALL.into_iter().find(|dialect| dialect.name() == name);
    found.ok_or_else(|| format!("one of {}", Dialect::ALL.map(Dialect::name).join(", ")))
}

pub(super) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A client's limits, from flags.
pub(super) fn client_limits(connections: u32, timeout_ms: u64) -> ClientLimits {
    ClientLimits { connections_max: connections as usize, timeout: Ns::from_millis(timeout_ms) }
}
