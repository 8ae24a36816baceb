//! TLS from a certificate chain and a key in PEM.

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// Where the certificate and the key are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The chain, leaf first, in PEM.
    pub certificate: PathBuf,
    /// The leaf's key, in PEM.
    pub key: PathBuf,
}

impl TlsFiles {
    /// Loads both, for HTTP/2 and HTTP/1.1.
    ///
    /// # Errors
    /// Names the file.
    pub fn load(&self) -> Result<TlsAcceptor, String> {
        let named = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let chain = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| named(&self.certificate, &error))?;
        if chain.is_empty() {
            return Err(named(&self.certificate, &"holds no certificate"));
        }
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| named(&self.key, &error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| named(&self.key, &error))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_wrong_is_named() {
        let place = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = place.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let good = write("good.pem", &made.cert.pem());
        let key = write("key.pem", &made.signing_key.serialize_pem());
        let other = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let other_key = write("other.pem", &other.signing_key.serialize_pem());
        let empty = write("empty.pem", "");
        let load = |certificate: &PathBuf, key: &PathBuf| {
            TlsFiles { certificate: certificate.clone(), key: key.clone() }.load().err().unwrap_or_default()
        };
        assert_eq!(load(&good, &key), "");
        assert!(load(&empty, &key).contains("empty.pem: holds no certificate"));
        assert!(load(&good, &empty).contains("empty.pem"));
        assert!(load(&place.path().join("nowhere.pem"), &key).contains("nowhere.pem"));
        assert!(load(&good, &other_key).contains("other.pem"));
    }
}
