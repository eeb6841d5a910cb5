//! What a server tells of itself before anything is made there.

use std::sync::Arc;
use std::time::Duration;

use async_nats::ServerAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::connect::connect;
use super::options::NatsOptions;
use super::service::Service;
use crate::log::error::ConnectError;

/// How long the monitoring port may take. Where there is none the answer comes at once, or a firewall gives none.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// An answer is a few kilobytes; another program's may be anything.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// What a server told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    /// Its version.
    pub version: String,
    /// Its id, by which its other answers are known.
    pub id: String,
    /// Whether our account may use JetStream there.
    pub has_jetstream: bool,
    /// What its monitoring port says of JetStream, as JSON; empty when it does not answer. Clients are not told how a server syncs.
    pub monitoring: Vec<String>,
}

impl ServerFacts {
    /// Asks the server, and the monitoring port of each address.
    ///
    /// # Errors
    /// [`ConnectError`] when it cannot be reached.
    pub async fn ask(options: &NatsOptions, monitoring_port: u16) -> Result<ServerFacts, ConnectError> {
        let (client, _link) = connect(options, &Arc::new(Service::default())).await?;
        let context = async_nats::jetstream::new(client.clone());
        let has_jetstream = context.query_account().await.is_ok();
        let mut monitoring = Vec::new();
        for address in options.urls.iter().filter_map(|url| url.parse::<ServerAddr>().ok()) {
            let asked = ask_monitoring(address.host(), monitoring_port);
            if let Ok(Ok(answer)) = tokio::time::timeout(ANSWER_WITHIN, asked).await {
                monitoring.push(answer);
            }
        }
        let info = client.server_info();
        Ok(ServerFacts { version: info.version, id: info.server_id, has_jetstream, monitoring })
    }
}

/// The body of the answer.
async fn ask_monitoring(host: &str, port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((host, port)).await?;
    let request = format!("GET /jsz?config=true HTTP/1.0\r\nHost: {host}:{port}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).await?;
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}
