//! What is watched of one kind: in all namespaces by one watch, or in some by one for each.
//!
//! A watch that was lost lists everything again, and what it does not list is gone; so each has a
//! store of its own.

use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt};
use kube::core::NamespaceResourceScope;
use kube::runtime::reflector::store::{self, Writer};
use kube::runtime::reflector::{self, Lookup, ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use super::asked;
use super::backoff::Backoff;

/// Watches are reopened this often, so a connection that died silently is found within this time.
const WATCH_SECONDS: u32 = 60;

/// The namespaces that are watched: all, or these.
#[derive(Clone, Debug, Default)]
pub struct Scopes(Vec<String>);

/// The objects as last seen.
pub struct Seen<K>(Arc<Vec<(Option<String>, Store<K>)>>)
where
    K: Lookup<DynamicType = ()> + Clone + 'static;

/// Takes in what the watches tell.
pub struct Watched<K>
where
    K: Lookup<DynamicType = ()> + Clone + 'static,
{
    stores: Vec<(Writer<K>, bool)>,
}

/// What a watch tells, and which one it is.
pub type Told<K> = (usize, watcher::Result<Event<K>>);

impl Scopes {
    /// Of these namespaces; all if there are none. Each counts once.
    pub fn new(namespaces: impl IntoIterator<Item = String>) -> Self {
        let mut all: Vec<String> = namespaces
            .into_iter()
            .filter(|name| !name.is_empty())
            .collect();
        all.sort();
        all.dedup();
        Self(all)
    }

    /// For people.
    pub fn describe(&self) -> String {
        match &self.0[..] {
            [] => "all".to_owned(),
            some => some.join(", "),
        }
    }

    /// The namespace of one of the watches, unless that is of all.
    pub fn of(&self, which: usize) -> Option<&str> {
        self.0.get(which).map(String::as_str)
    }

    fn each(&self) -> Vec<Option<&str>> {
        match &self.0[..] {
            [] => vec![None],
            some => some.iter().map(|name| Some(&**name)).collect(),
        }
    }

    /// Opens the watches, and again for ever.
    pub fn watch<K>(&self, client: &Client) -> impl futures::Stream<Item = Told<K>> + use<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + std::fmt::Debug + Send + DeserializeOwned + 'static,
    {
        let watches = self.each().into_iter().enumerate().map(|(which, scope)| {
            let api = match scope {
                Some(namespace) => Api::namespaced(client.clone(), namespace),
                None => Api::all(client.clone()),
            };
            let told: BoxStream<'static, _> = events(api).map(move |event| (which, event)).boxed();
            told
        });
        stream::select_all(watches.collect::<Vec<_>>())
    }
}

impl<K> Clone for Seen<K>
where
    K: Lookup<DynamicType = ()> + Clone + 'static,
{
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> Seen<K>
where
    K: Lookup<DynamicType = ()> + Clone + 'static,
{
    /// One of them.
    pub fn get(&self, object: &ObjectRef<K>) -> Option<Arc<K>> {
        let is_in = |scope: &Option<String>| scope.is_none() || *scope == object.namespace;
        let mut stores = self.0.iter().filter(|(scope, _)| is_in(scope));
        stores.find_map(|(_, store)| store.get(object))
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = Arc<K>> {
        self.0.iter().flat_map(|(_, store)| store.state())
    }
}

impl<K> Watched<K>
where
    K: Lookup<DynamicType = ()> + Clone + 'static,
{
    /// Nothing seen yet.
    pub fn new(scopes: &Scopes) -> (Seen<K>, Self) {
        let (seen, stores) = scopes
            .each()
            .into_iter()
            .map(|scope| {
                let (seen, store): (Store<K>, store::Writer<K>) = reflector::store();
                ((scope.map(str::to_owned), seen), (store, false))
            })
            .unzip();
        (Seen(Arc::new(seen)), Self { stores })
    }

    /// One of the watches tells this.
    pub fn apply(&mut self, which: usize, event: &Event<K>) {
        let (store, is_complete) = &mut self.stores[which];
        store.apply_watcher_event(event);
        *is_complete |= matches!(event, Event::InitDone);
    }

    /// Whether everything there is has been seen once.
    pub fn is_complete(&self) -> bool {
        self.stores.iter().all(|(_, is_complete)| *is_complete)
    }
}

fn events<K>(api: Api<K>) -> impl futures::Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Resource + Clone + std::fmt::Debug + Send + DeserializeOwned + 'static,
{
    let config = watcher::Config::default().timeout(WATCH_SECONDS);
    watch(api, config)
        .modify(|object| {
            // The bulk of a Secret's metadata, and of no use here.
            object.meta_mut().managed_fields = None;
            if let Some(annotations) = &mut object.meta_mut().annotations {
                annotations.retain(|name, _| name.starts_with(asked::PREFIX));
            }
        })
        .backoff(Backoff::away())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn object(namespace: &str, name: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.namespace = Some(namespace.to_owned());
        object.metadata.name = Some(name.to_owned());
        object
    }

    fn reference(namespace: &str, name: &str) -> ObjectRef<ConfigMap> {
        ObjectRef::new(name).within(namespace)
    }

    #[test]
    fn a_watch_that_begins_again_forgets_nothing_of_another_namespace() {
        let scopes = Scopes::new(["b", "a", "", "b"].map(str::to_owned));
        assert_eq!(scopes.describe(), "a, b");
        let (seen, mut watched) = Watched::new(&scopes);
        for (which, namespace) in ["a", "b"].into_iter().enumerate() {
            assert!(!watched.is_complete());
            watched.apply(which, &Event::Init);
            watched.apply(which, &Event::InitApply(object(namespace, "x")));
            watched.apply(which, &Event::InitDone);
        }
        assert!(watched.is_complete());
        assert!(seen.get(&reference("a", "x")).is_some());
        assert!(seen.get(&reference("c", "x")).is_none());
        watched.apply(0, &Event::Init);
        watched.apply(0, &Event::InitDone);
        assert!(seen.get(&reference("a", "x")).is_none());
        assert!(seen.get(&reference("b", "x")).is_some());
        assert_eq!(seen.all().count(), 1);
        assert!(watched.is_complete());
    }

    #[test]
    fn without_a_namespace_all_are_watched() {
        let scopes = Scopes::new([String::new()]);
        assert_eq!(scopes.describe(), "all");
        let (seen, mut watched) = Watched::new(&scopes);
        watched.apply(0, &Event::Apply(object("any", "x")));
        assert!(seen.get(&reference("any", "x")).is_some());
    }
}
