"""Every command of ``kvctl`` with its flags: the one place that declares them.

Names, defaults and one-line texts are etcdctl's, since help is parsed by completion scripts too. Building the tree
imports no command.
"""

from __future__ import annotations

from recipes.ctl.commands import Command
from recipes.ctl.flags import DURATION, Flag

SECOND = 10**9

GLOBAL_FLAGS = (
    Flag("endpoints", ["127.0.0.1:2379"], "gRPC endpoints", kind="stringSlice"),
    Flag("debug", False, "enable client-side debug logging"),
    Flag("write-out", "simple", "set the output format (fields, json, protobuf, simple, table)", short="w"),
    Flag("hex", False, "print byte strings as hex encoded strings"),
    Flag("dial-timeout", 2 * SECOND, "dial timeout for client connections", kind=DURATION),
    Flag(
        "command-timeout",
        5 * SECOND,
        "timeout for short running command (excluding dial timeout)",
        kind=DURATION,
    ),
    Flag("keepalive-time", 2 * SECOND, "keepalive time for client connections", kind=DURATION),
    Flag("keepalive-timeout", 6 * SECOND, "keepalive timeout for client connections", kind=DURATION),
    Flag("insecure-transport", True, "disable transport security for client connections"),
    Flag("insecure-discovery", True, "accept insecure SRV records describing cluster endpoints"),
    Flag(
        "insecure-skip-tls-verify",
        False,
        "skip server certificate verification (CAUTION: this option should be enabled only for testing purposes)",
    ),
    Flag("cert", "", "identify secure client using this TLS certificate file"),
    Flag("key", "", "identify secure client using this TLS key file"),
    Flag("cacert", "", "verify certificates of TLS-enabled secure servers using this CA bundle"),
    Flag("user", "", "username[:password] for authentication (prompt if password is not supplied)"),
    Flag(
        "password",
        "",
        "password for authentication (if this option is used, --user option shouldn't include password)",
    ),
    Flag("discovery-srv", "", "domain name to query for SRV records describing cluster endpoints", short="d"),
    Flag("discovery-srv-name", "", "service name to query when using DNS discovery"),
)

_CLUSTER = Flag("cluster", False, "use all endpoints from the cluster member list")

_PUT_LONG = """Writes one key.

The value is the second argument, or standard input when there is none:

$ kvctl put <key> < file

A value that begins with '-' would be taken for a flag; put '--' before it:

$ kvctl put <key> -- <value>"""

_TXN_LONG = """Reads one transaction from standard input and runs it as a single step.

Three lists follow each other, each ended by an empty line: comparisons, the
operations to run if all of them hold, the operations to run if one does not.

  value("key") = "text"     also: version, create, mod, lease; =, !=, <, >
  mod("key") > "0"

  put key "a value"
  get key --prefix
  del key"""


def get_command() -> Command:
    """Declare ``get``; txn parses its operations with it too."""
    return Command(
        "get [options] <key> [range_end]",
        "Gets the key or a range of keys",
        "recipes.ctl.get:run",
        flags=(
            Flag("consistency", "l", "Linearizable(l) or Serializable(s)"),
            Flag("order", "", "Order of results; ASCEND or DESCEND (ASCEND by default)"),
            Flag("sort-by", "", "Sort target; CREATE, KEY, MODIFY, VALUE, or VERSION"),
            Flag("limit", 0, "Maximum number of results"),
            Flag("prefix", False, "Get keys with matching prefix"),
            Flag("from-key", False, "Get keys that are greater than or equal to the given key using byte compare"),
            Flag("rev", 0, "Specify the kv revision"),
            Flag("keys-only", False, "Get only the keys"),
            Flag("count-only", False, "Get only the count"),
            Flag("print-value-only", False, 'Only write values when using the "simple" output format'),
        ),
    )


def put_command() -> Command:
    """Declare ``put``; txn parses its operations with it too."""
    return Command(
        "put [options] <key> <value> (<value> can also be given from stdin)",
        "Puts the given key into the store",
        "recipes.ctl.put:run",
        long=_PUT_LONG,
        flags=(
            Flag("lease", "0", "lease ID (in hexadecimal) to attach to the key"),
            Flag("prev-kv", False, "return the previous key-value pair before modification"),
            Flag("ignore-value", False, "updates the key using its current value"),
            Flag("ignore-lease", False, "updates the key using its current lease"),
        ),
    )


def del_command() -> Command:
    """Declare ``del``; txn parses its operations with it too."""
    return Command(
        "del [options] <key> [range_end]",
        "Removes the specified key or range of keys [key, range_end)",
        "recipes.ctl.delete:run",
        flags=(
            Flag("prefix", False, "delete keys with matching prefix"),
            Flag("prev-kv", False, "return deleted key-value pairs"),
            Flag("from-key", False, "delete keys that are greater than or equal to the given key using byte compare"),
        ),
    )


def watch_command() -> Command:
    """Declare ``watch``; its interactive form parses its lines with it too."""
    return Command(
        "watch [options] [key or prefix] [range_end] [--] [exec-command arg1 arg2 ...]",
        "Watches events stream on keys or prefixes",
        "recipes.ctl.watch:run",
        flags=(
            Flag("interactive", False, "Interactive mode", short="i"),
            Flag("prefix", False, "Watch on a prefix if prefix is set"),
            Flag("rev", 0, "Revision to start watching"),
            Flag("prev-kv", False, "get the previous key-value pair before the event happens"),
            Flag("progress-notify", False, "get periodic watch progress notification from server"),
        ),
    )


def _lease() -> Command:
    return Command(
        "lease <subcommand>",
        "Lease related commands",
        children=(
            Command("grant <ttl>", "Creates leases", "recipes.ctl.lease:grant"),
            Command("revoke <leaseID>", "Revokes leases", "recipes.ctl.lease:revoke"),
            Command(
                "timetolive <leaseID> [options]",
                "Get lease information",
                "recipes.ctl.lease:time_to_live",
                flags=(Flag("keys", False, "Get keys attached to this lease"),),
            ),
            Command("list", "List all active leases", "recipes.ctl.lease:list_leases"),
            Command(
                "keep-alive [options] <leaseID>",
                "Keeps leases alive (renew)",
                "recipes.ctl.lease:keep_alive",
                flags=(Flag("once", False, "Renews the lease once and exits immediately"),),
            ),
        ),
    )


def _endpoint() -> Command:
    return Command(
        "endpoint <subcommand>",
        "Endpoint related commands",
        shared=(_CLUSTER,),
        children=(
            Command(
                "health",
                "Checks the healthiness of endpoints specified in `--endpoints` flag",
                "recipes.ctl.endpoint:health",
            ),
            Command(
                "status",
                "Prints out the status of endpoints specified in `--endpoints` flag",
                "recipes.ctl.endpoint:status",
                long="With --write-out=simple, one line an endpoint: endpoint, ID, version, db size, is leader, "
                "is learner, raft term,\nraft index, raft applied index, errors.",
            ),
            Command(
                "hashkv",
                "Prints the KV history hash for each endpoint in --endpoints",
                "recipes.ctl.endpoint:hash_kv",
                flags=(Flag("rev", 0, "maximum revision to hash (default: all revisions)"),),
            ),
        ),
    )


def _member() -> Command:
    return Command(
        "member <subcommand>",
        "Membership related commands",
        children=(
            Command(
                "add <memberName> [options]",
                "Adds a member into the cluster",
                "recipes.ctl.member:add",
                flags=(
                    Flag("peer-urls", "", "comma separated peer URLs for the new member."),
                    Flag("learner", False, "indicates if the new member is raft learner"),
                ),
            ),
            Command("remove <memberID>", "Removes a member from the cluster", "recipes.ctl.member:remove"),
            Command(
                "update <memberID> [options]",
                "Updates a member in the cluster",
                "recipes.ctl.member:update",
                flags=(Flag("peer-urls", "", "comma separated peer URLs for the updated member."),),
            ),
            Command(
                "list",
                "Lists all members in the cluster",
                "recipes.ctl.member:list_members",
                long="With --write-out=simple, one line a member: ID, status, name, peer addresses, client addresses, "
                "is learner.",
            ),
            Command(
                "promote <memberID>",
                "Promotes a non-voting member in the cluster",
                "recipes.ctl.member:promote",
                long="Makes a learner that has caught up a voting member.",
            ),
        ),
    )


def _auth() -> Command:
    return Command(
        "auth <enable or disable>",
        "Enable or disable authentication",
        children=(
            Command("enable", "Enables authentication", "recipes.ctl.auth:enable"),
            Command("disable", "Disables authentication", "recipes.ctl.auth:disable"),
            Command("status", "Returns authentication status", "recipes.ctl.auth:status"),
        ),
    )


def _user() -> Command:
    return Command(
        "user <subcommand>",
        "User related commands",
        children=(
            Command(
                "add <user name or user:password> [options]",
                "Adds a new user",
                "recipes.ctl.user:add",
                flags=(
                    Flag("interactive", True, "Read password from stdin instead of interactive terminal"),
                    Flag("new-user-password", "", "Supply password from the command line flag"),
                    Flag("no-password", False, "Create a user without password (CN based auth only)"),
                ),
            ),
            Command("delete <user name>", "Deletes a user", "recipes.ctl.user:delete"),
            Command(
                "get <user name> [options]",
                "Gets detailed information of a user",
                "recipes.ctl.user:get",
                flags=(Flag("detail", False, "Show permissions of roles granted to the user"),),
            ),
            Command("list", "Lists all users", "recipes.ctl.user:list_users"),
            Command(
                "passwd <user name> [options]",
                "Changes password of user",
                "recipes.ctl.user:change_password",
                flags=(Flag("interactive", True, "If true, read password from stdin instead of interactive terminal"),),
            ),
            Command("grant-role <user name> <role name>", "Grants a role to a user", "recipes.ctl.user:grant_role"),
            Command(
                "revoke-role <user name> <role name>", "Revokes a role from a user", "recipes.ctl.user:revoke_role"
            ),
        ),
    )


def _role() -> Command:
    def ranges(verb: str, noun: str) -> tuple[Flag, Flag]:
        return (
            Flag("prefix", False, f"{verb} a prefix permission"),
            Flag(
                "from-key",
                False,
                f"{verb} a permission of {noun} that are greater than or equal to the given key using byte compare",
            ),
        )

    return Command(
        "role <subcommand>",
        "Role related commands",
        children=(
            Command("add <role name>", "Adds a new role", "recipes.ctl.role:add"),
            Command("delete <role name>", "Deletes a role", "recipes.ctl.role:delete"),
            Command("get <role name>", "Gets detailed information of a role", "recipes.ctl.role:get"),
            Command("list", "Lists all roles", "recipes.ctl.role:list_roles"),
            Command(
                "grant-permission [options] <role name> <permission type> <key> [endkey]",
                "Grants a key to a role",
                "recipes.ctl.role:grant_permission",
                flags=ranges("grant", "keys"),
            ),
            Command(
                "revoke-permission <role name> <key> [endkey]",
                "Revokes a key from a role",
                "recipes.ctl.role:revoke_permission",
                flags=ranges("revoke", "keys"),
            ),
        ),
    )


def build(program: str = "kvctl") -> Command:
    """Build the whole tree.

    Args:
        program: The name of the program in help and error texts.
    """
    return Command(
        program,
        "A simple command line client for etcd3." if program == "etcdctl" else "A command line client for etcd v3.",
        shared=GLOBAL_FLAGS,
        children=(
            get_command(),
            put_command(),
            del_command(),
            Command(
                "txn [options]",
                "Txn processes all the requests in one transaction",
                "recipes.ctl.txn:run",
                long=_TXN_LONG,
                flags=(Flag("interactive", False, "Input transaction in interactive mode", short="i"),),
            ),
            Command(
                "compaction [options] <revision>",
                "Compacts the event history in etcd",
                "recipes.ctl.compaction:run",
                flags=(
                    Flag("physical", False, "'true' to wait for compaction to physically remove all old revisions"),
                ),
            ),
            Command(
                "alarm <subcommand>",
                "Alarm related commands",
                children=(
                    Command("disarm", "Disarms all alarms", "recipes.ctl.alarm:disarm"),
                    Command("list", "Lists all alarms", "recipes.ctl.alarm:list_alarms"),
                ),
            ),
            Command(
                "defrag",
                "Defragments the storage of the etcd members with given endpoints",
                "recipes.ctl.defrag:run",
                shared=(_CLUSTER,),
                flags=(Flag("data-dir", "", "Optional. If present, defragments a data directory not in use by etcd."),),
            ),
            _endpoint(),
            Command(
                "move-leader <transferee-member-id>",
                "Transfers leadership to another etcd cluster member.",
                "recipes.ctl.move_leader:run",
            ),
            watch_command(),
            Command("version", f"Prints the version of {program}", "recipes.ctl.version:run"),
            _lease(),
            _member(),
            Command(
                "snapshot <subcommand>",
                "Manages etcd node snapshots",
                children=(
                    Command(
                        "save <filename>",
                        "Stores an etcd node backend snapshot to a given file",
                        "recipes.ctl.snapshot:save",
                    ),
                ),
            ),
            Command(
                "lock <lockname> [exec-command arg1 arg2 ...]",
                "Acquires a named lock",
                "recipes.ctl.lock:run",
                flags=(Flag("ttl", 10, "timeout for session"),),
            ),
            Command(
                "elect <election-name> [proposal]",
                "Observes and participates in leader election",
                "recipes.ctl.elect:run",
                flags=(Flag("listen", False, "observation mode", short="l"),),
            ),
            _auth(),
            _user(),
            _role(),
            Command(
                "completion [bash|zsh|fish]",
                "Generates a completion script",
                "recipes.ctl.completion:run",
                long="Prints a script for the shell to load:\n\n$ source <(kvctl completion bash)",
            ),
            Command(
                "help [command]",
                "Help about any command",
                "recipes.ctl.cli:help_command",
                long="Shows the help of the command named after it.",
            ),
        ),
    )
