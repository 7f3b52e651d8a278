// Package verdict is the line by which a virtual machine tells on its console how it went.
package verdict

import "strings"

const prefix = "VM VERDICT: "

// Pass is the verdict of a machine in which everything went well; any other text says what did not.
const Pass = "PASS"

// Line returns the line of a verdict.
func Line(v string) string { return prefix + strings.ReplaceAll(v, "\n", "; ") }

// Parse returns the verdict that a line is.
func Parse(line string) (string, bool) { return strings.CutPrefix(line, prefix) }
