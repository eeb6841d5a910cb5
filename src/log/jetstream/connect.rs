//! Makes the connection.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event};
use tokio::sync::watch;

use super::super::error::ConnectError;
use super::Link;
use super::options::NatsOptions;
use super::service::Service;

/// The longest wait between two tries to reconnect: short, because one packet is all that a try costs.
const RECONNECT_CAP: Duration = Duration::from_secs(2);

/// A connection whose other end vanished without a word is noticed after two or three of these.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// How long one address may take.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn connect(
    options: &NatsOptions,
    service: &Arc<Service>,
) -> Result<(Client, watch::Receiver<Link>), ConnectError> {
    let urls = options.urls.join(",");
    let (changed, link) = watch::channel(Link::default());
    let mut connect = ConnectOptions::new()
        .name(&options.name)
        .connection_timeout(CONNECTION_TIMEOUT)
        .ping_interval(PING_INTERVAL)
        .reconnect_delay_callback(|attempts| {
            let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(10);
            if attempts <= 1 { Duration::ZERO } else { Duration::from_millis(25 << doublings).min(RECONNECT_CAP) }
        })
        .event_callback({
            let changed = changed.clone();
            move |event| {
                note(&changed, &event);
                async {}
            }
        });
    let service = Arc::clone(service);
    connect = connect.reconnect_to_server_callback(move |servers, _| {
        let chosen = service.choose(&servers);
        async { chosen }
    });
    if let Some(ca) = &options.tls_ca {
        connect = connect.add_root_certificates(ca.clone()).require_tls(true);
    }
    if let Some((certificate, key)) = &options.tls_identity {
        connect = connect.add_client_certificate(certificate.clone(), key.clone()).require_tls(true);
    }
    if let Some((user, password)) = &options.user {
        connect = connect.user_and_password(user.clone(), password.clone());
    }
    if let Some(token) = &options.token {
        connect = connect.token(token.clone());
    }
    if let Some(seed) = &options.nkey_seed {
        connect = connect.nkey(seed.clone());
    }
    if let Some(file) = &options.creds_file {
        connect = connect.credentials_file(file).await.map_err(|error| ConnectError::Option {
            option: "creds file",
            what: format!("{}: {error}", file.display()),
        })?;
    }
    let client = connect.connect(options.urls.as_slice()).await.map_err(|error| {
        let what = causes(&error);
        match error.kind() {
            ConnectErrorKind::ServerParse => {
                ConnectError::Option { option: "nats-url", what: format!("{urls}: {what}") }
            }
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                ConnectError::Unauthorized { urls: urls.clone(), what }
            }
            ConnectErrorKind::Io if is_handshake(&error) => ConnectError::Tls { urls: urls.clone(), what },
            ConnectErrorKind::Tls => ConnectError::Tls { urls: urls.clone(), what },
            ConnectErrorKind::Dns
            | ConnectErrorKind::TimedOut
            | ConnectErrorKind::Io
            | ConnectErrorKind::MaxReconnects => ConnectError::Unreachable { urls: urls.clone(), what },
        }
    })?;
    // The event that says so may come later than we need to know it.
    note(&changed, &Event::Connected);
    Ok((client, link))
}

/// A failed TLS handshake comes as an I/O error about invalid data; a broken or refused connection has other kinds.
fn is_handshake(error: &dyn std::error::Error) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
    source.is_some_and(|source| source.kind() == std::io::ErrorKind::InvalidData)
}

/// The client's errors keep the reason in their sources.
fn causes(error: &dyn std::error::Error) -> String {
    /// Chains are three or four long; the bound is against one that leads back into itself.
    const CAUSES_MAX: usize = 10;
    std::iter::successors(Some(error), |error| error.source())
        .take(CAUSES_MAX)
        .map(ToString::to_string)
        .fold(Vec::new(), |mut texts: Vec<String>, text| {
            // Many repeat their source's words.
            if texts.last().is_none_or(|last| !last.contains(&text)) {
                texts.push(text);
            }
            texts
        })
        .join(": ")
}

fn note(link: &watch::Sender<Link>, event: &Event) {
    link.send_modify(|link| match event {
        Event::Connected => {
            link.change_count += u64::from(!link.connected);
            link.connected = true;
            link.error_last = None;
        }
        Event::Disconnected | Event::Closed => {
            link.change_count += u64::from(link.connected);
            link.connected = false;
        }
        Event::ServerError(error) => link.error_last = Some(error.to_string()),
        Event::ClientError(error) => link.error_last = Some(error.to_string()),
        Event::LameDuckMode | Event::Draining | Event::SlowConsumer(_) => {}
    });
}
