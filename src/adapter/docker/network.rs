//! The network of the containers: a bridge with a way out and nothing between them.

use std::collections::HashMap;

use bollard::models::NetworkCreateRequest;
use bollard::query_parameters::ListNetworksOptions;

use super::client::{ASK, START};
use super::{Network, OWNER, Shared};
use crate::adapter::AdapterError;

/// The id of the network for the next container, which is made if it is not there; none: no network.
///
/// Asked before every start (a millisecond) rather than remembered, because `docker network prune` takes a network
/// without containers away. The id and not the name goes to Docker, because names are not unique: two
/// executors that start together may both make one, and Docker then refuses the name as ambiguous.
pub(super) async fn ensure(shared: &Shared) -> Result<Option<String>, AdapterError> {
    let Network::Bridge(name) = &shared.network else { return Ok(None) };
    if let Some(id) = find(shared, name).await? {
        return Ok(Some(id));
    }
    let _making = shared.network_lock.lock().await;
    if let Some(id) = find(shared, name).await? {
        return Ok(Some(id));
    }
    make(shared, name).await.map(Some)
}

async fn find(shared: &Shared, name: &str) -> Result<Option<String>, AdapterError> {
    let options = ListNetworksOptions {
        // Matches parts of names, too; a name may hold what Docker reads as a pattern, so it is compared below.
        filters: Some(HashMap::from([("name".to_owned(), vec![name.to_owned()])])),
    };
    let client = &shared.client;
    let found = client.call(ASK, "list networks", client.docker.list_networks(Some(options))).await?;
    let same = found.into_iter().filter(|n| n.name.as_deref() == Some(name));
    Ok(same.filter_map(|n| n.id).min())
}

async fn make(shared: &Shared, name: &str) -> Result<String, AdapterError> {
    let text = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let request = NetworkCreateRequest {
        name: name.to_owned(),
        driver: Some("bridge".to_owned()),
        options: Some(HashMap::from([text("com.docker.network.bridge.enable_icc", "false")])),
        labels: Some(HashMap::from([text(OWNER, &shared.owner)])),
        ..Default::default()
    };
    let client = &shared.client;
    let made = client
        .call(START, "make the network of the functions", client.docker.create_network(request))
        .await?;
    tracing::info!(network = %name, "made the network of the functions");
    Ok(made.id)
}
