//! MongoMirror keeps a second MongoDB database exactly equal to the first one, live.

pub mod engine;
pub mod operator;
pub mod resource;
pub mod runner;
