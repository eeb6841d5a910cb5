//! Whole clusters: the program, a real server, applications in processes of their own.

mod behind;
mod conflicts;
mod disk;
mod faults;
mod flow;
mod indexes;
mod large;
mod locked;
mod lost_tail;
mod managed;
mod migrations;
mod nats_cluster;
mod outbox;
mod power;
mod recorded;
mod replaced;
mod row_filters;
mod schema;
mod short_log;
mod snapshots;
mod table_filters;
mod usage;
mod verify;
mod went_back;
