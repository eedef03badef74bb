//! Tests of the ledger; to be filled.
