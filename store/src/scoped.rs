//! A view of a store that cannot leave one scope.

use async_trait::async_trait;

use crate::error::StoreError;
use crate::key::{Key, Prefix, Scope};
use crate::store::{Envelope, Page, Store, Transaction, Versioned};
use crate::watch::Watch;

/// A store limited to one [`Scope`]; hand this, not the store, to code that serves one organisation.
///
/// Every key and prefix is checked, whoever built it; those outside answer [`StoreError::OutOfScope`] before
/// anything is read or written.
#[derive(Debug, Clone)]
pub struct Scoped<S> {
    store: S,
    scope: Scope,
}

impl<S: Store> Scoped<S> {
    /// Limits `store` to `scope`.
    pub fn new(store: S, scope: Scope) -> Self {
        Self { store, scope }
    }

    /// The scope, to build keys with.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The record `id` of `kind`.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub async fn read(&self, kind: &str, id: &str) -> Result<Option<Versioned>, StoreError> {
        self.store.get(&self.scope.key(kind, id)?).await
    }

    /// Records of `kind` in the order of their ids; see [`Store::list`].
    ///
    /// # Errors
    /// As [`Store::list`].
    pub async fn list_kind(&self, kind: &str, after: Option<&Key>, limit: usize) -> Result<Page, StoreError> {
        self.list(&self.scope.kind(kind)?, after, limit).await
    }

    /// Writes the record `id` of `kind`, whatever was there before.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub async fn put(&self, kind: &str, id: &str, envelope: Envelope) -> Result<u64, StoreError> {
        let key = self.scope.key(kind, id)?;
        self.store.commit(Transaction::new().put(key, envelope)).await
    }

    /// Removes the record `id` of `kind`, if there is one.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub async fn delete(&self, kind: &str, id: &str) -> Result<u64, StoreError> {
        let key = self.scope.key(kind, id)?;
        self.store.commit(Transaction::new().delete(key)).await
    }

    fn check(&self, text: &str) -> Result<(), StoreError> {
        let scope = self.scope.prefix().as_str();
        if text.starts_with(scope) {
            return Ok(());
        }
        Err(StoreError::OutOfScope {
            what: text.into(),
            scope: scope.into(),
        })
    }
}

#[async_trait]
impl<S: Store> Store for Scoped<S> {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>, StoreError> {
        self.check(key.as_str())?;
        self.store.get(key).await
    }

    async fn list(&self, prefix: &Prefix, after: Option<&Key>, limit: usize) -> Result<Page, StoreError> {
        self.check(prefix.as_str())?;
        self.store.list(prefix, after, limit).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, StoreError> {
        for key in transaction.keys() {
            self.check(key.as_str())?;
        }
        self.store.commit(transaction).await
    }

    async fn watch(&self, prefix: &Prefix) -> Result<Watch, StoreError> {
        self.check(prefix.as_str())?;
        self.store.watch(prefix).await
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        self.store.revision().await
    }

    /// Closes the store below, for all its views.
    async fn close(&self) -> Result<(), StoreError> {
        self.store.close().await
    }
}
