//! Texts of real machines, and a directory tree that plays a cgroup file system.

use std::fs;

use super::hierarchy::{Hierarchy, of};
use super::*;

const ALL: [Controller; 3] = Controller::ALL;

fn seen(own: &str, table: &str) -> Vec<(CgroupVersion, Vec<Controller>, String, String)> {
    let text = |path: &Path| path.display().to_string();
    of(own, table.as_bytes())
        .iter()
        .map(|found| (found.version, found.controllers.clone(), text(&found.top), text(&found.own)))
        .collect()
}

#[test]
fn a_systemd_user_session_is_in_the_unified_hierarchy() {
    let own =
        "0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-org.gnome.Terminal.slice/vte-spawn-5.scope\n";
    let table = "29 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
    let folder = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/app.slice/app-org.gnome.Terminal.slice/vte-spawn-5.scope";
    assert_eq!(seen(own, table), [(CgroupVersion::V2, vec![], "/sys/fs/cgroup".into(), folder.into())]);
    assert_eq!(of(own, table.as_bytes())[0].up().count(), 7);
}

#[test]
fn docker_with_version_1_shows_only_what_is_below_its_own() {
    let id = "/docker/3f4e09c5";
    let own = format!(
        "12:pids:{id}\n11:memory:{id}\n3:cpu,cpuacct:{id}\n1:name=systemd:{id}\n0::/system.slice/containerd.service\n"
    );
    let table = format!(
        "740 739 0:30 {id} /sys/fs/cgroup/systemd ro,nosuid,nodev,noexec,relatime master:11 - cgroup cgroup rw,xattr,name=systemd\n\
         742 739 0:34 {id} /sys/fs/cgroup/cpu,cpuacct ro,nosuid,nodev,noexec,relatime master:16 - cgroup cgroup rw,cpu,cpuacct\n\
         745 739 0:37 {id} /sys/fs/cgroup/memory ro,nosuid,nodev,noexec,relatime master:19 - cgroup cgroup rw,memory\n\
         746 739 0:38 {id} /sys/fs/cgroup/pids ro,nosuid,nodev,noexec,relatime master:20 - cgroup cgroup rw,pids\n"
    );
    let at = |version, controllers: &[Controller], path: &str| {
        (version, controllers.to_vec(), path.to_owned(), path.to_owned())
    };
    let v1 = CgroupVersion::V1;
    let expected = [
        at(v1, &[Controller::Pids], "/sys/fs/cgroup/pids"),
        at(v1, &[Controller::Memory], "/sys/fs/cgroup/memory"),
        at(v1, &[Controller::Cpu], "/sys/fs/cgroup/cpu,cpuacct"),
        at(v1, &[], "/sys/fs/cgroup/systemd"),
    ];
    assert_eq!(seen(&own, &table), expected);
}

#[test]
fn a_private_namespace_begins_at_its_own_root() {
    let table = "1513 1512 0:26 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate\n";
    let expected = (CgroupVersion::V2, vec![], "/sys/fs/cgroup".to_owned(), "/sys/fs/cgroup".to_owned());
    assert_eq!(seen("0::/\n", table), [expected]);
    // The host's mount, seen from inside: its root is above, and so is a process that was moved in from outside.
    let above = table.replace(" / /sys", " /../.. /sys");
    assert_eq!(seen("0::/\n", &above), []);
    assert_eq!(seen("0::/../other\n", table), []);
}

#[test]
fn a_hybrid_host_has_controllers_in_version_1_and_processes_in_both() {
    let own = "9:name=systemd:/\n8:pids:/\n4:memory:/jobs/b8db\n1:cpu:/\n0::/\n";
    let table = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                 32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                 33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct\n\
                 35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                 39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n\
                 41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    let found = seen(own, table);
    assert_eq!(found.len(), 4, "no mount of name=systemd: {found:?}");
    assert!(found.contains(&(
        CgroupVersion::V1,
        vec![Controller::Memory],
        "/sys/fs/cgroup/memory".into(),
        "/sys/fs/cgroup/memory/jobs/b8db".into()
    )));
    assert!(found.iter().any(|(version, ..)| *version == CgroupVersion::V2));
}

#[test]
fn nothing_is_found_where_there_is_nothing() {
    assert_eq!(seen("", ""), []);
    assert_eq!(seen("0::/\n", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"), []);
    assert_eq!(seen("nonsense\n:\n1:memory\n", "31 23 0:28 / /x rw - cgroup2 c rw\n"), []);
    let cgroups = Cgroups::of(&[], "shannot-x".into(), &ALL);
    assert_eq!(cgroups.best(CgroupVersion::V2, &ALL), None);
    assert_eq!(cgroups.why_not(Controller::Cpu).cause, "no cgroup of the caller has the controller cpu");
}

/// A tree like systemd's for a user: nobody but the delegated part may be written (in play: the files are missing).
fn user_session() -> (tempfile::TempDir, Hierarchy) {
    let top = tempfile::tempdir().unwrap();
    let own = top.path().join("user.slice/user@1.service/app.slice/term.scope");
    fs::create_dir_all(&own).unwrap();
    let play = |folder: &Path, files: &[(&str, &str)]| {
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
    };
    let service = top.path().join("user.slice/user@1.service");
    let delegated = [("cgroup.type", "domain\n"), ("cgroup.procs", ""), ("cgroup.controllers", "cpu memory pids\n")];
    // As root's, whose other files others can't write.
    play(top.path(), &[("cgroup.controllers", "cpuset cpu io memory hugetlb pids rdma\n")]);
    play(&service, &delegated);
    play(&service, &[("cgroup.subtree_control", "cpu memory pids\n"), ("pids.max", "9000\n"), ("memory.max", "max\n")]);
    play(&service.join("app.slice"), &delegated);
    play(&service.join("app.slice"), &[("cgroup.subtree_control", "memory pids\n"), ("pids.max", "max\n")]);
    play(&own, &delegated);
    play(&own, &[("cgroup.procs", "77\n"), ("cgroup.controllers", "memory pids\n"), ("cgroup.subtree_control", "\n")]);
    play(&own, &[("memory.max", "1073741824\n"), ("pids.max", "500\n"), ("cpu.max", "max 100000\n")]);
    let hierarchy = Hierarchy::played(CgroupVersion::V2, Vec::new(), top.path(), &own);
    (top, hierarchy)
}

#[test]
fn a_sibling_is_made_below_the_nearest_ancestor_that_gives_the_controllers() {
    let (top, hierarchy) = user_session();
    let name = "shannot-0123456789abcdef";
    let cgroups = Cgroups::of(std::slice::from_ref(&hierarchy), name.into(), &ALL);
    let place = cgroups.best(CgroupVersion::V2, &[Controller::Memory, Controller::Pids]).unwrap();
    let slice = top.path().join("user.slice/user@1.service/app.slice");
    assert_eq!(place.folder, slice);
    assert_eq!(place.has, [Controller::Memory, Controller::Pids]);
    assert_eq!(place.can_enable, [Controller::Cpu]);
    // What the scope was limited to goes with the command.
    assert_eq!(place.ceiling, Ceiling { memory: Some(1 << 30), pids: Some(500), cpus: None });
    for folder in hierarchy.up() {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = names.filter(|name| crate::host::is_private_name(name.as_encoded_bytes())).collect();
        assert!(left.is_empty(), "the try is gone again: {left:?}");
    }
}

#[test]
fn processes_keep_their_cgroup_from_giving_controllers() {
    let (top, hierarchy) = user_session();
    let slice = top.path().join("user.slice/user@1.service/app.slice");
    fs::write(slice.join("cgroup.procs"), "42\n").unwrap();
    fs::write(slice.join("cgroup.subtree_control"), "\n").unwrap();
    let cgroups = Cgroups::of(std::slice::from_ref(&hierarchy), "shannot-x".into(), &ALL);
    let place = cgroups.best(CgroupVersion::V2, &ALL).unwrap();
    assert_eq!(place.folder, slice.parent().unwrap());
    // Nor does a container's root, with its processes in it and nothing above that could be seen.
    let own = hierarchy.up().next().unwrap();
    let container = Hierarchy::played(CgroupVersion::V2, Vec::new(), own, own);
    let cgroups = Cgroups::of(std::slice::from_ref(&container), "shannot-x".into(), &ALL);
    assert_eq!(cgroups.places, []);
    let why = cgroups.why_not(Controller::Memory);
    assert!(why.cause.contains("has processes of its own") && why.cure.is_some(), "{why:?}");
    // A threaded one has no children with a memory controller, an unwritable one none at all.
    fs::write(own.join("cgroup.type"), "threaded\n").unwrap();
    let cgroups = Cgroups::of(std::slice::from_ref(&container), "shannot-x".into(), &ALL);
    assert!(cgroups.why_not(Controller::Pids).cause.contains("is threaded"));
    fs::remove_file(own.join("cgroup.procs")).unwrap();
    let cgroups = Cgroups::of(&[container], "shannot-x".into(), &ALL);
    assert!(cgroups.why_not(Controller::Pids).cause.contains("no cgroup can be made in"), "{cgroups:?}");
}

#[test]
fn version_1_makes_a_child_of_the_callers_own() {
    let top = tempfile::tempdir().unwrap();
    let own = top.path().join("job");
    fs::create_dir(&own).unwrap();
    for (folder, quota) in [(top.path(), "150000\n"), (own.as_path(), "-1\n")] {
        fs::write(folder.join("cpu.cfs_quota_us"), quota).unwrap();
        fs::write(folder.join("cpu.cfs_period_us"), "100000\n").unwrap();
    }
    let hierarchy = Hierarchy::played(CgroupVersion::V1, vec![Controller::Cpu], top.path(), &own);
    let cgroups = Cgroups::of(&[hierarchy], "shannot-x".into(), &ALL);
    let place = cgroups.best(CgroupVersion::V1, &ALL).unwrap();
    assert_eq!(
        (place.folder.as_path(), place.ceiling.cpus, place.limits_swap),
        (own.as_path(), Some(1500), Some(false))
    );
    assert_eq!(cgroups.best(CgroupVersion::V1, &[Controller::Memory]), None);
}
