//! A sink for tests that are not about changes.

use std::convert::Infallible;

use woodchuck::change::{ChangeSink, RowChange, SchemaChange, TxSpan};

/// Takes everything and keeps nothing.
pub struct Ignore;

impl ChangeSink<Infallible> for Ignore {
    fn begin(&mut self, _: &TxSpan) -> Result<(), Infallible> {
        Ok(())
    }
    fn schema(&mut self, _: SchemaChange) -> Result<(), Infallible> {
        Ok(())
    }
    fn change(&mut self, _: RowChange) -> Result<(), Infallible> {
        Ok(())
    }
    fn commit(&mut self, _: &TxSpan, _: u64) -> Result<(), Infallible> {
        Ok(())
    }
}
