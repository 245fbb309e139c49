//! The chart on a real cluster: a node of the test bed, pods, and all of it by helm and kubectl, as
//! a user would.
//!
//! One test plays all scenes, since one cluster is enough for them. `stage` is the cluster with
//! what stands on it, `mongo` are servers in it, the scenes are in the other files.

#[path = "../common/mod.rs"]
mod common;
mod faults;
mod install;
mod mongo;
mod releases;
mod stage;

use stage::Stage;
use testbed::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_live_through_everything_that_happens_in_a_cluster() {
    if let Err(why) = Cluster::prepare().await {
        panic!("{why}");
    }
    let stage = Stage::start().await;
    scene!(stage, install::a_restricted_namespace_takes_the_release);
    scene!(stage, install::helm_test_says_whether_it_is_ready);
    scene!(stage, install::a_first_mirror_is_live_and_told_to_kubectl);
    scene!(
        stage,
        faults::a_standby_takes_over_from_a_leader_that_was_deleted
    );
    scene!(
        stage,
        faults::a_container_that_was_killed_on_the_node_goes_on
    );
    scene!(stage, faults::memory_stays_within_192_mib);
    scene!(stage, faults::servers_come_back_at_other_addresses);
    scene!(stage, faults::a_changed_secret_is_used);
    scene!(stage, releases::an_upgrade_rolls_under_load);
    scene!(
        stage,
        releases::an_uninstalled_release_leaves_everything_and_the_next_goes_on
    );
    scene!(stage, releases::an_operator_of_one_namespace_sees_no_other);
    stage.shows_no_password().await;
}
