//! The connection that messages are appended over. It is of its own because it must not be made again under the messages that wait in it.
//!
//! A client that reconnects sends what it has queued on the new connection, before anybody can look at what the server behind it has. Where
//! that server lost the end of its streams, the queued message would take the place of one that was acknowledged, on all nodes and for good.

use std::sync::{Arc, PoisonError};

use async_nats::connection::State;
use async_nats::jetstream::Context;
use async_nats::{Client, ServerAddr};
use tokio::sync::{Mutex, watch};

use super::super::error::PublishError;
use super::options::NatsOptions;
use super::tails::Tails;
use super::{ACK_TIMEOUT, Link, REQUEST_TIMEOUT, connect};

/// One such connection.
#[derive(Debug)]
pub(super) struct Publishing {
    pub(super) context: Context,
    /// The same connection with [`REQUEST_TIMEOUT`].
    pub(super) requests: Context,
    /// Turns true when it is lost.
    pub(super) lost: watch::Receiver<bool>,
    /// Its number, from 1.
    pub(super) number: u64,
    /// What other nodes said of the streams, for the first message over it.
    pub(super) tails: Tails,
    /// The server's process.
    pub(super) server_id: String,
    /// The count of changes of the other connection at which it was made.
    change_count: u64,
}

impl Publishing {
    fn is_sound(&self, change_count: u64) -> bool {
        let is_connected = self.context.client().connection_state() == State::Connected;
        self.change_count == change_count && is_connected && !*self.lost.borrow()
    }
}

/// Makes one after another. Each stays with the other connection: when that one changes, this one is made anew, at the same server.
#[derive(Debug)]
pub(super) struct Publishings {
    nats: NatsOptions,
    /// The other connection, which hears of what is refused over this one.
    link: watch::Sender<Link>,
    made: Mutex<Made>,
    /// The server's process that cannot have lost anything that no node has told of.
    known_server: std::sync::Mutex<String>,
}

#[derive(Debug, Default)]
struct Made {
    count: u64,
    last: Option<Arc<Publishing>>,
}

impl Publishings {
    /// `server_id` is the process that the other connection goes to.
    pub(super) fn new(nats: NatsOptions, server_id: String, link: watch::Sender<Link>) -> Publishings {
        Publishings { nats, link, made: Mutex::default(), known_server: std::sync::Mutex::new(server_id) }
    }

    fn known_server(&self) -> std::sync::MutexGuard<'_, String> {
        // What is kept here is whole after every step.
        self.known_server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server can have lost something before this process was connected to it.
    pub(super) fn doubt_server(&self) {
        self.known_server().clear();
    }

    /// Everybody was asked what this process of the server should have.
    pub(super) fn know_server(&self, server_id: &str) {
        server_id.clone_into(&mut self.known_server());
    }

    pub(super) fn is_known_server(&self, server_id: &str) -> bool {
        *self.known_server() == server_id
    }

    /// The connection to append over. `client` is the other one, and `change_count` how often it has changed.
    pub(super) async fn get(&self, client: &Client, change_count: u64) -> Result<Arc<Publishing>, PublishError> {
        let mut made = self.made.lock().await;
        if let Some(last) = made.last.as_ref().filter(|last| last.is_sound(change_count)) {
            return Ok(Arc::clone(last));
        }
        made.last = None;
        let (client, lost) = self.make(client).await?;
        made.count += 1;
        let server_id = client.server_info().server_id;
        let mut context = async_nats::jetstream::new(client.clone());
        context.set_timeout(ACK_TIMEOUT);
        let mut requests = async_nats::jetstream::new(client);
        requests.set_timeout(REQUEST_TIMEOUT);
        let publishing = Arc::new(Publishing {
            context,
            requests,
            lost,
            number: made.count,
            tails: Tails::default(),
            server_id,
            change_count,
        });
        made.last = Some(Arc::clone(&publishing));
        Ok(publishing)
    }

    /// Connects to the server that `other` is connected to; to another one where that cannot be told, as behind a balancer.
    async fn make(&self, other: &Client) -> Result<(Client, watch::Receiver<bool>), PublishError> {
        let mut servers = other.server_pool().await.map_err(|_| PublishError::Disconnected)?;
        servers.sort_by_key(|server| (!server.did_connect, server.failed_attempts));
        let wanted = other.server_info().server_id;
        let mut any = None;
        let mut trouble = None;
        for server in servers {
            match connect::connect_once(&self.nats, &self.link, ServerAddr::clone(&server.addr)).await {
                Ok(made) if made.0.server_info().server_id == wanted => return Ok(made),
                Ok(made) => any = any.or(Some(made)),
                Err(error) => trouble = Some(error),
            }
        }
        match (any, trouble) {
            (Some(made), _) => Ok(made),
            (None, Some(error)) => Err(PublishError::NoConnection(error)),
            (None, None) => Err(PublishError::Disconnected),
        }
    }
}
