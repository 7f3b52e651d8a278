package main

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// variablePrefix begins the name of an environment variable that stands for a key of the configuration file.
const variablePrefix = "MIGRATE_"

// setFromEnvironment gives c what variables say, each of which goes before the same key of the file: MIGRATE_BRIDGE for bridge,
// MIGRATE_PORTS_RAFT for raft below ports. Lists are separated by commas. An empty variable says nothing.
func setFromEnvironment(c *agentFile, lookup func(string) (string, bool)) error {
	return setFields(reflect.ValueOf(c).Elem(), variablePrefix, lookup)
}

func setFields(v reflect.Value, prefix string, lookup func(string) (string, bool)) error {
	var errs []error
	for i := range v.NumField() {
		key, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		name := prefix + strings.ToUpper(key)
		if f := v.Field(i); f.Kind() == reflect.Struct {
			errs = append(errs, setFields(f, name+"_", lookup))
		} else if text, ok := lookup(name); ok && text != "" {
			if err := setField(f, text); err != nil {
				errs = append(errs, fmt.Errorf("environment variable %s: %w", name, err))
			}
		}
	}
	return errors.Join(errs...)
}

func setField(f reflect.Value, text string) error {
	switch f.Interface().(type) {
	case string:
		f.SetString(text)
	case []string:
		f.Set(reflect.ValueOf(strings.Split(text, ",")))
	case int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("%q is not a whole number", text)
		}
		f.SetInt(int64(n))
	case bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", text)
		}
		f.SetBool(b)
	default:
		return fmt.Errorf("a key of kind %v cannot be given here", f.Type())
	}
	return nil
}
