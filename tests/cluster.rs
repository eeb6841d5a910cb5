//! Whole clusters: the program, a real server, applications in processes of their own.

mod flow;
