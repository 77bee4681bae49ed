package main

import "github.com/spf13/cobra"

// topics are pages of the help that belong to no command.
func topics() []*cobra.Command {
	return []*cobra.Command{
		{Use: "exit-codes", Short: "The exit codes", Long: "The exit codes of tunnelctl:\n\n" + exitHelp},
		{Use: "json", Short: "What --json prints", Long: jsonHelp},
		{Use: "environment", Short: "Environment variables and files", Long: environmentHelp},
	}
}

const jsonHelp = `With --json a command prints what the relay's API answers, indented, and nothing else to stdout:

status      an object Status
sites       a list of Site
services    a list of Service
sessions    a list of Session, links a list of Link
streams     a list of Stream
visitors    a list of Visitor
requests    a list of Request; with -f one object a line, as they come
logs        a list of LogLine; with -f one object a line, as they come
alerts      a list of Alert
alerts test a list of AlertDelivery
certs       a list of Certificate
site        add, rotate: an Invitation; promote: a Promoted; kick: the Session
whoami      a Me; token list: a list of TokenInfo; operator list: of Operator; audit: of AuditLine
version     an object with client and relay, each a Version
top         one object Figures a line, a second, until Ctrl-C; with --once one

Fields are only ever added. Times are RFC 3339, those that end in _s are seconds, in _ms milliseconds; bytes are bytes.
The types are described in the API's OpenAPI document, which the relay serves at /api/openapi.json.

Errors are an object on stderr: {"error":"...","exit_code":4}. See tunnelctl help exit-codes. What goes on when the relay
is away says so there, too: {"note":"..."}.`

const environmentHelp = `CULVERT_CONTEXT      the name of a relay that you are logged in to; --context beats it
CULVERT_ADMIN        the admin address; --admin beats it
CULVERT_RELAY        the relay's own URL; --relay beats it
CULVERT_CA           PEM file of the private authority of the relay's certificate; --ca beats it
CULVERT_TOKEN_FILE   file with the operators' token; --token-file beats it
NO_COLOR             if set: no colours
TERM                 dumb: no colours, and no live view

~/.config/culvert/relays.json    the relays that you are logged in to, and your tokens
~/.config/culvert/known_sites    the keys of private relays that have been reached
~/.config/culvert/operator.key   your own key, for sites that name their operators

No secret is taken from the environment or the command line, where other users of the machine may see it.`
