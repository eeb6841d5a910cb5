//! Makes connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ReconnectToServer, ServerAddr};
use tokio::sync::watch;

use super::super::error::ConnectError;
use super::Link;
use super::options::NatsOptions;
use super::service::Service;

/// The longest wait between two tries to reconnect: short, because one packet is all that a try costs.
pub(super) const RECONNECT_CAP: Duration = Duration::from_secs(1);

/// A connection whose other end vanished without a word is noticed after two or three of these.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// How long one address may take.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);

/// Refusals that are kept to be told of.
const REFUSALS_MAX: usize = 16;

/// Makes the connection that everything but appending goes over. It is made again by itself, for ever.
pub(super) async fn connect(
    options: &NatsOptions,
    service: &Arc<Service>,
) -> Result<(Client, watch::Sender<Link>), ConnectError> {
    let changed = watch::Sender::new(Link::default());
    let service = Arc::clone(service);
    let connect = prepared(options)
        .await?
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
        })
        .reconnect_to_server_callback(move |servers, _| {
            let chosen = service.choose(&servers);
            async { chosen }
        });
    let client =
        connect.connect(options.urls.as_slice()).await.map_err(|error| refused(&error, options.urls.join(",")))?;
    // The event that says so may come later than we need to know it.
    note(&changed, &Event::Connected);
    Ok((client, changed))
}

/// Makes a connection to one server that is never made again, and tells when it is lost. `link` hears of what the server refuses over it.
pub(super) async fn connect_once(
    options: &NatsOptions,
    link: &watch::Sender<Link>,
    server: ServerAddr,
) -> Result<(Client, watch::Receiver<bool>), ConnectError> {
    /// An address that nobody can listen at. The client knows no way to leave a lost connection alone, but it gives up when all that it may go to
    /// fails.
    const NOWHERE: &str = "nats://127.0.0.1:0";
    let (changed, lost) = watch::channel(false);
    let connect = prepared(options)
        .await?
        .max_reconnects(1)
        .ignore_discovered_servers()
        .reconnect_to_server_callback(|servers, _| async move {
            let only = servers.into_iter().next()?;
            Some(ReconnectToServer { addr: only.addr, delay: Some(Duration::ZERO) })
        })
        .event_callback({
            let link = link.clone();
            move |event| {
                match &event {
                    Event::Disconnected | Event::Closed => drop(changed.send_replace(true)),
                    Event::ServerError(error) => link.send_modify(|link| note_refusal(link, &error.to_string())),
                    _ => {}
                }
                async {}
            }
        });
    let url = server.as_url_str().to_owned();
    let client = connect.connect(server).await.map_err(|error| refused(&error, url.clone()))?;
    // Commands are carried out in order: what is sent after this one goes to this connection, or nowhere.
    match client.set_server_pool(NOWHERE).await {
        Ok(()) => Ok((client, lost)),
        Err(error) => Err(ConnectError::Unreachable { urls: url, what: error.to_string() }),
    }
}

/// What all connections have in common.
async fn prepared(options: &NatsOptions) -> Result<ConnectOptions, ConnectError> {
    let mut connect =
        ConnectOptions::new().name(&options.name).connection_timeout(CONNECTION_TIMEOUT).ping_interval(PING_INTERVAL);
    // The client says that there is none, and not which.
    let files = [("CA file", options.tls_ca.as_ref())].into_iter();
    let identity = options.tls_identity.as_ref();
    let files = files.chain(
        identity
            .into_iter()
            .flat_map(|(certificate, key)| [("certificate file", Some(certificate)), ("key file", Some(key))]),
    );
    for (option, file) in files.filter_map(|(option, file)| Some((option, file?))) {
        let readable = std::fs::File::open(file);
        readable.map_err(|error| ConnectError::Option { option, what: format!("{}: {error}", file.display()) })?;
    }
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
    Ok(connect)
}

fn refused(error: &async_nats::ConnectError, urls: String) -> ConnectError {
    let what = causes(error);
    match error.kind() {
        ConnectErrorKind::ServerParse => ConnectError::Option { option: "nats-url", what: format!("{urls}: {what}") },
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            ConnectError::Unauthorized { urls, what }
        }
        ConnectErrorKind::Io if is_handshake(error) => ConnectError::Tls { urls, what },
        ConnectErrorKind::Tls => ConnectError::Tls { urls, what },
        ConnectErrorKind::Dns | ConnectErrorKind::TimedOut | ConnectErrorKind::Io | ConnectErrorKind::MaxReconnects => {
            ConnectError::Unreachable { urls, what }
        }
    }
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
            link.refusals.clear();
        }
        Event::Disconnected | Event::Closed => {
            link.change_count += u64::from(link.connected);
            link.connected = false;
        }
        Event::ServerError(error) => {
            note_refusal(link, &error.to_string());
            link.error_last = Some(error.to_string());
        }
        Event::ClientError(error) => link.error_last = Some(error.to_string()),
        Event::LameDuckMode | Event::Draining | Event::SlowConsumer(_) => {}
    });
}

/// Keeps what the server complains about if it is a missing permission. It names the subject, and there are not many that we use.
fn note_refusal(link: &mut Link, text: &str) {
    let is_known = link.refusals.contains_key(text);
    if text.to_ascii_lowercase().contains("permission") && (is_known || link.refusals.len() < REFUSALS_MAX) {
        link.refusals.insert(text.to_owned(), Instant::now());
    }
}
