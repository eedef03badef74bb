//! The sites of functions whose files are the answer: one open [`Site`] per function, replaced when it changes.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use http::Response;
use http::request::Parts;

use super::body::AnswerBody;
use super::site::{Site, SiteOptions};
use crate::function::Function;

/// See the module.
#[derive(Default)]
pub struct Sites(Mutex<HashMap<Arc<str>, Open>>);

/// The fingerprint of the function it was opened for, and the site.
type Open = (u64, Arc<Site>);

impl Sites {
    /// Answers from the function's files. `path` as the function sees it; empty: its name without a slash.
    ///
    /// # Errors
    /// Its folder cannot be opened.
    pub async fn serve(
        &self,
        function: &Arc<Function>,
        parts: &Parts,
        path: &str,
    ) -> io::Result<Response<AnswerBody>> {
        let site = match self.open(function) {
            Some(site) => site,
            None => self.make(function).await?,
        };
        Ok(site.serve(parts, path).await)
    }

    fn open(&self, function: &Function) -> Option<Arc<Site>> {
        let sites = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (fingerprint, site) = sites.get(&function.name)?;
        (*fingerprint == function.fingerprint).then(|| Arc::clone(site))
    }

    async fn make(&self, function: &Arc<Function>) -> io::Result<Arc<Site>> {
        let (options, warnings) = SiteOptions::from_environment(&function.env);
        for warning in warnings {
            tracing::warn!(function = %function.name, "{warning}");
        }
        let root = function.folder.join(&function.entrypoint);
        let opened = tokio::task::spawn_blocking(move || Site::open(&root, options)).await;
        let site = Arc::new(opened.map_err(io::Error::other)??);
        let mut sites = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sites.insert(Arc::clone(&function.name), (function.fingerprint, Arc::clone(&site)));
        Ok(site)
    }
}
