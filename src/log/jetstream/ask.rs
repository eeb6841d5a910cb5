//! Questions from node to node, beside the log: nothing that is said here has to be remembered.

use std::time::Duration;

use async_nats::{Client, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;

use super::super::error::LogError;
use super::JetStreamLog;

/// How long the server may take to bring back what was said to ourselves.
const HEARD_WITHIN: Duration = Duration::from_secs(5);

/// Questions to this node.
#[derive(Debug)]
pub struct Questions {
    client: Client,
    subscriber: Subscriber,
}

/// A question that waits for its answer.
#[derive(Debug)]
pub struct Question {
    client: Client,
    reply: Option<async_nats::Subject>,
    /// What was asked.
    pub payload: Bytes,
}

impl Questions {
    /// The next question; `None` when the connection is closed for good.
    pub async fn next(&mut self) -> Option<Question> {
        let message = self.subscriber.next().await?;
        Some(Question { client: self.client.clone(), reply: message.reply, payload: message.payload })
    }
}

impl Question {
    /// Says something before the answer. What gets lost is not said again.
    pub async fn say(&self, payload: Bytes) {
        if let Some(reply) = &self.reply {
            let _ = self.client.publish(reply.clone(), payload).await;
        }
    }

    /// Answers. An answer that gets lost is as if nobody had given it: whoever asked asks again.
    pub async fn answer(self, payload: Bytes) {
        if let Some(reply) = self.reply {
            let _ = self.client.publish(reply, payload).await;
            let _ = self.client.flush().await;
        }
    }
}

impl JetStreamLog {
    fn question_subject(&self, what: &str) -> String {
        format!("{}-ask.{}.{what}", self.options.subject_prefix, self.options.shard_count)
    }

    /// Takes questions of a kind: each goes to one of the nodes that take them.
    ///
    /// # Errors
    /// [`LogError::Unreachable`].
    pub async fn take_questions(&self, what: &str) -> Result<Questions, LogError> {
        let client = self.context.client();
        let subscriber = client.queue_subscribe(self.question_subject(what), "woodchuck".to_owned()).await;
        let subscriber = subscriber.map_err(|error| LogError::Unreachable(error.to_string()))?;
        self.heard().await?;
        Ok(Questions { client: client.clone(), subscriber })
    }

    /// Waits until the server has taken in what this connection said before: it does so in order, and brings this back.
    async fn heard(&self) -> Result<(), LogError> {
        let client = self.context.client();
        let unreachable = |error: &dyn std::fmt::Display| LogError::Unreachable(error.to_string());
        let inbox = client.new_inbox();
        let mut echo = client.subscribe(inbox.clone()).await.map_err(|error| unreachable(&error))?;
        client.publish(inbox, Bytes::new()).await.map_err(|error| unreachable(&error))?;
        let came = tokio::time::timeout(HEARD_WITHIN, echo.next()).await;
        came.map_err(|error| unreachable(&error)).map(drop)
    }

    /// Asks any node, and hands what it says to `hear` until that takes it for the answer. `None` when no node takes such questions.
    ///
    /// # Errors
    /// [`LogError::Unreachable`], also when nothing is said for longer than `silence_max`.
    pub async fn ask_patiently<T>(
        &self,
        what: &str,
        question: Bytes,
        silence_max: Duration,
        mut hear: impl FnMut(&Bytes) -> Option<T>,
    ) -> Result<Option<T>, LogError> {
        let client = self.context.client();
        let unreachable = |error: &dyn std::fmt::Display| LogError::Unreachable(error.to_string());
        let inbox = client.new_inbox();
        let mut said = client.subscribe(inbox.clone()).await.map_err(|error| unreachable(&error))?;
        let asked = client.publish_with_reply(self.question_subject(what), inbox, question).await;
        asked.map_err(|error| unreachable(&error))?;
        loop {
            let next = tokio::time::timeout(silence_max, said.next()).await;
            let next = next.map_err(|_| unreachable(&"the node that was asked has gone silent"))?;
            let next = next.ok_or_else(|| unreachable(&"the connection was closed"))?;
            // The server says so when nobody is there.
            if next.status.is_some() {
                return Ok(None);
            }
            if let Some(answer) = hear(&next.payload) {
                return Ok(Some(answer));
            }
        }
    }

    async fn take_broadcasts(&self, what: &str) -> Result<Questions, LogError> {
        let client = self.context.client();
        let subscriber = client.subscribe(self.question_subject(what)).await;
        let subscriber = subscriber.map_err(|error| LogError::Unreachable(error.to_string()))?;
        Ok(Questions { client: client.clone(), subscriber })
    }

    /// Takes questions of a kind that go to every node, and tries again until that works.
    pub async fn broadcasts(&self, what: &str) -> Questions {
        loop {
            match self.take_broadcasts(what).await {
                Ok(questions) => return questions,
                Err(error) => tracing::debug!("cannot take questions yet: {error}"),
            }
            tokio::time::sleep(HEARD_WITHIN / 5).await;
        }
    }

    /// Asks every node, and hands the answers that come within a time to `hear`, until it says that it has heard enough.
    ///
    /// # Errors
    /// [`LogError::Unreachable`].
    pub async fn ask_all(
        &self,
        what: &str,
        payload: Bytes,
        within: Duration,
        hear: &mut (dyn FnMut(&Bytes) -> bool + Send),
    ) -> Result<(), LogError> {
        let client = self.context.client();
        let unreachable = |error: &dyn std::fmt::Display| LogError::Unreachable(error.to_string());
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.map_err(|error| unreachable(&error))?;
        let asked = client.publish_with_reply(self.question_subject(what), inbox, payload).await;
        asked.map_err(|error| unreachable(&error))?;
        let listen = async {
            while let Some(answer) = answers.next().await {
                // The server says so when nobody is there.
                if answer.status.is_some() || hear(&answer.payload) {
                    break;
                }
            }
        };
        // The end of the time is as good an end as any.
        let _ = tokio::time::timeout(within, listen).await;
        Ok(())
    }
}
